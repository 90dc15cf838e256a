"""What readers of responses share: token ids and a table of experts become a document's routing."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block, Source, hash_of
from moescope.traces.checks import check_ids
from moescope.traces.readers.base import Recording, Request, checked_k, layers_of
from moescope.traces.readers.lines import text_of

_INTEGERS = ("u1", "u2", "i2", "i4", "i8", "u4", "i1")


def table_of(value: Any, place: str) -> np.ndarray:
    """Expert ids from nested lists, or from the base64 text of a .npy file: int64, (rows, layers, K).

    Raises:
        UsageError: It is neither, or of another shape.
    """
    if isinstance(value, str):
        table = npy(decoded(value, place), place)
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                table = np.array(value)
        except (ValueError, TypeError, OverflowError, Warning) as error:
            raise _no_table(place, "is no table of numbers") from error
    if table.ndim != 3 or table.dtype.kind not in "iu" or 0 in table.shape[1:]:
        raise _no_table(place, f"has shape {table.shape} of {table.dtype}")
    return table.astype(np.int64)


def decoded(text: str, place: str) -> bytes:
    """Bytes of base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _no_table(place, f"is no base64: {error}") from error


def npy(data: bytes, place: str, *, kinds: str = "iu") -> np.ndarray:
    """The array of a .npy file: whole numbers (or of these kinds), and as many as its header says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_fortran_order, dtype = read(file)
        if dtype.kind not in kinds:
            raise ValueError(f"it holds {dtype}, not {'whole numbers' if kinds == 'iu' else 'numbers or text'}")
        rest = data[file.tell() :]
        # The header is compared with what is there before memory is taken for what it promises.
        if np.prod(shape, dtype=object) * dtype.itemsize != len(rest):
            raise ValueError(f"its header promises shape {shape}, {len(rest):,} bytes follow")
    except (ValueError, SyntaxError, TypeError, EOFError) as error:
        raise _no_table(place, f"is no .npy file that can be used: {error}") from error
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if in_fortran_order else "C")


def token_ids(value: Any, name: str, place: str) -> np.ndarray:
    """Token ids, int64.

    Raises:
        UsageError: It is no list of whole numbers from 0.
    """
    try:
        ids = np.array(value if value is not None else None)
    except (ValueError, TypeError, OverflowError):
        ids = np.array(None)
    if isinstance(value, list) and not value:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**31:
        raise UsageError(
            f"{place} has no {name}",
            expected="the token ids, without which rows of routing can't be told apart",
            remedy="ask the server for them (return_token_ids) and keep them with the response",
        )
    return ids.astype(np.int64)


class Documents:
    """Makes blocks of requests: drops layers without experts and positions without routing, and checks the rest.

    Args:
        request: What is asked.
        recording: Gets layers (with the first document) and notes.
    """

    def __init__(self, request: Request, engine: str) -> None:
        self.request = request
        self.recording = Recording(engine, [], iter(()), num_experts=None)
        if request.shape is not None:
            self.recording.num_experts = request.shape.num_experts
        self._kept: list[int] = []
        self._num_recorded = 0
        self._cached = self._refused = self._without_output = 0

    def domain_of(self, record: Mapping[str, Any]) -> str:
        """The record's domain."""
        request = self.request
        if request.domain is not None:
            return request.domain
        fields = [request.domain_field] if request.domain_field else ["domain"]
        found = text_of(record, *fields)
        if found is None and request.domain_field:
            raise UsageError(
                f"a record has no field {request.domain_field!r}", expected="the domain of every record",
                remedy="name another field with `domain_field`, or one domain for all with `domain`",
            )  # fmt: skip
        return found or request.default_domain

    def skip(self) -> None:
        """Counts a request without routing (preempted, or not asked for)."""
        self._refused += 1

    def block(
        self,
        table_NLK: np.ndarray,
        prompt_ids: np.ndarray,
        output_ids: np.ndarray,
        *,
        source: Source,
        place: str,
        start: int = 0,
        first: int = 0,
    ) -> Block | None:
        """A request's routing.

        Args:
            table_NLK: Expert ids of its tokens from `start` on.
            prompt_ids: Tokens of the prompt.
            output_ids: Tokens that the model wrote; the last was never routed.
            source: The document.
            place: Where it is from.
            start: Tokens at the beginning that have no row.
            first: Tokens at the beginning that are not counted (of a prompt that another choice counts already).

        Raises:
            UsageError: Rows that do not fit the tokens, or ids that no routing has.
        """
        ids = np.concatenate([prompt_ids, output_ids])
        wanted = len(ids) - start
        if len(table_NLK) not in (wanted, wanted - 1):
            raise UsageError(
                f"{place}: {len(table_NLK)} rows of routing",
                expected=f"{wanted - 1} or {wanted}: {len(prompt_ids)} tokens of the prompt and {len(output_ids)} "
                f"written{f', without the first {start}' if start else ''}",
                remedy="keep prompt_token_ids and token_ids of the same request",
            )
        if not self.recording.layers:
            self._begin(table_NLK, place)
        if table_NLK.shape[1] != self._num_recorded:
            raise UsageError(
                f"{place}: routing of {table_NLK.shape[1]} layers, {self._num_recorded} before",
                expected="the same model for all requests",
            )
        checked_k(table_NLK.shape[2], self.request.shape, place)
        table_NLK = table_NLK[:, self._kept]
        cached_N = (table_NLK == -1).all(axis=(1, 2))
        self._cached += int(cached_N.sum())
        positions_T = start + np.flatnonzero(~cached_N)
        positions_T = positions_T[positions_T >= first]
        if not positions_T.size:
            return None
        table_TLK = table_NLK[positions_T - start]
        check_ids(table_TLK, self.recording.num_experts, self.recording.layers, place)
        following = np.append(ids[1:], -1)
        return Block(
            documents=[source],
            rows_T=np.zeros(len(positions_T), np.int64),
            positions_T=positions_T,
            generated_T=positions_T >= len(prompt_ids),
            expert_ids_TLK=table_TLK,
            token_ids_T=ids[positions_T],
            next_token_ids_T=following[positions_T],
        )

    def _begin(self, table_NLK: np.ndarray, place: str) -> None:
        """Layers, from the first request: without a model, one whose experts are all 0 has none."""
        self._num_recorded = table_NLK.shape[1]
        self._kept, layers = layers_of(self._num_recorded, self.request.shape, place)
        if self.request.shape is None and table_NLK.shape[2] > 1:
            dense = [layer for layer in layers if not table_NLK[:, layer].any()]
            self._kept = layers = [layer for layer in layers if layer not in dense]
            if not layers:
                raise UsageError(f"{place}: expert 0 everywhere", expected="expert ids")
            if dense:
                self.recording.notes.append(
                    f"layers without experts, by their ids (all 0): {', '.join(map(str, dense))}; the model would tell"
                )
        self.recording.layers.extend(layers)

    def finish(self) -> None:
        """Notes what was left out."""
        if self._cached:
            self.recording.notes.append(f"{self._cached:,} tokens without routing (prefix cache) are left out")
        if self._refused:
            self.recording.notes.append(f"{self._refused:,} requests without routing are left out")


def started(documents: Documents, blocks: Iterator[Block]) -> Recording:
    """The recording, its layers known: the first block is read."""
    recording = documents.recording
    first = next(blocks, None)
    if first is None:
        documents.finish()
        raise UsageError(
            f"{documents.request.paths[0]} holds no routing",
            expected="responses with expert ids",
            remedy="; ".join(recording.notes) or "ask the server for them when it is started and in each request",
        )

    def all_blocks() -> Iterator[Block]:
        yield first
        yield from blocks
        documents.finish()

    recording.blocks = all_blocks()
    return recording


def source_of(record: Mapping[str, Any], documents: Documents, place: str, choice: int, *ids: str) -> Source:
    """A record's document: by its id, else by its place in the file."""
    name = text_of(record, *ids) or place
    name = name if choice == 0 else f"{name}#{choice}"
    return Source(name, hash_of(name), documents.domain_of(record))


def choices_of(record: Mapping[str, Any], place: str) -> Sequence[Mapping[str, Any]]:
    """The answers of a response."""
    choices = record.get("choices", record.get("outputs"))
    if choices is None:
        choices = [record]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UsageError(f"{place} has no choices", expected="a list of objects, as the engine writes it")
    return choices


def _no_table(place: str, why: str) -> UsageError:
    return UsageError(
        f"the routing in {place} {why}",
        expected="expert ids of (tokens, layers, experts per token): nested lists, or base64 of a .npy file",
        remedy="check the format with `format`, and that the file was written to the end",
    )
