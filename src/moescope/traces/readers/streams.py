"""What readers share whose files hold one layer at a time, of tokens that no one knows more of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block, Source
from moescope.traces.checks import check_ids
from moescope.traces.facts import spelled
from moescope.traces.readers.base import Recording, Request, checked_k


def matrix(value: Any, place: str, *, kind: str = "iu") -> np.ndarray:
    """A table of tokens by K: whole numbers, or with "f" any.

    Raises:
        UsageError: It is none.
    """
    try:
        table = np.array(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{place}: rows of different lengths", expected="a list for each token") from error
    if table.ndim != 2 or table.dtype.kind not in kind or not table.shape[1]:
        raise UsageError(f"{place}: a table of shape {table.shape} of {table.dtype}", expected="(tokens, K) numbers")
    return table


class Stream:
    """Puts the layers of one step together; tokens have no ids, and documents are not known.

    Args:
        request: What is asked.
        engine: What ran the model.
        ranked: Whether experts are in the order of their weights.
    """

    def __init__(self, request: Request, engine: str, *, ranked: bool = True) -> None:
        self.request = request
        shape = request.shape
        self.recording = Recording(
            engine, [], iter(()), num_experts=shape.num_experts if shape else None, ranked=ranked
        )
        self.recording.notes.append("token ids and documents are not recorded in this format")
        self._num_tokens = 0
        self._incomplete = 0

    def begin(self, layers: list[int], place: str) -> None:
        """Sets the layers, from the first step."""
        shape = self.request.shape
        if shape is not None:
            if not set(layers) <= set(shape.layers) and {layer - 1 for layer in layers} <= set(shape.layers):
                raise UsageError(
                    f"{place}: layers {spelled(layers)}", expected=f"MoE layers of the model: {spelled(shape.layers)}",
                    remedy="the recording seems to count layers from 1: subtract 1 in its records",
                )  # fmt: skip
            missing, unknown = set(shape.layers) - set(layers), set(layers) - set(shape.layers)
            if missing or unknown:
                raise UsageError(
                    f"{place}: layers {spelled(layers)}",
                    expected=f"all MoE layers of the model: {spelled(shape.layers)}",
                    remedy="give the model that was traced; a recording that lacks layers can't be used",
                )
        self.recording.layers.extend(layers)

    def block(
        self,
        tables: Mapping[int, np.ndarray],
        place: str,
        *,
        generated: bool,
        weights: Mapping[int, np.ndarray] | None = None,
    ) -> Block | None:
        """One step, whose layers have as many tokens each; None, counted, where it lacks layers.

        Raises:
            UsageError: Layers that differ in tokens, or ids that no routing has.
        """
        layers = self.recording.layers
        unknown = sorted(set(tables) - set(layers))
        if unknown:
            raise UsageError(
                f"{place}: layer {spelled(unknown)}, which the first step lacks",
                expected=f"layers {spelled(layers)} in every step",
                remedy="cut the incomplete first step off",
            )
        if set(tables) != set(layers):
            self._incomplete += 1
            return None
        shapes = sorted({table.shape for table in tables.values()})
        if len(shapes) > 1:
            raise UsageError(
                f"{place}: layers with tables of {shapes[0]} and {shapes[-1]}",
                expected="the same tokens and experts per token at every layer of a step",
            )
        table_TLK = np.stack([tables[layer] for layer in layers], axis=1)
        num_tokens = len(table_TLK)
        if not num_tokens:
            return None
        checked_k(table_TLK.shape[2], self.request.shape, place)
        check_ids(table_TLK, self.recording.num_experts, layers, place)
        positions_T = np.arange(self._num_tokens, self._num_tokens + num_tokens) % 2**31
        self._num_tokens += num_tokens
        return Block(
            documents=[Source("", 0, self.request.default_domain)],
            rows_T=np.zeros(num_tokens, np.int64),
            positions_T=positions_T,
            generated_T=np.full(num_tokens, generated),
            expert_ids_TLK=table_TLK.astype(np.int64),
            weights_TLK=None if weights is None else np.stack([weights[layer] for layer in layers], axis=1),
        )

    def finish(self) -> None:
        """Notes what was left out."""
        if self._incomplete:
            self.recording.notes.append(f"{self._incomplete:,} steps that lack layers are left out")

    def started(self, blocks: Iterator[Block]) -> Recording:
        """The recording, its layers known: the first block is read.

        Raises:
            UsageError: There is none.
        """
        first = next(blocks, None)
        if first is None:
            raise UsageError(f"{self.request.paths[0]} holds no routing", expected="records with expert ids")

        def all_blocks() -> Iterator[Block]:
            yield first
            yield from blocks
            self.finish()

        self.recording.blocks = all_blocks()
        return self.recording
