"""What a reader makes of a file of another engine, and what it is told of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moescope.errors import UsageError
from moescope.traces.blocks import Block
from moescope.traces.facts import spelled


@dataclass(frozen=True)
class Shape:
    """The model's routing as its configuration has it.

    Attributes:
        num_blocks: Decoder blocks.
        layers: Those with routed experts.
        num_experts: E.
        num_experts_per_token: K.
    """

    num_blocks: int
    layers: tuple[int, ...]
    num_experts: int
    num_experts_per_token: int


@dataclass(frozen=True)
class Request:
    """What is asked of a reader.

    Attributes:
        paths: The files, or a folder.
        shape: The model's; None where no model was given.
        domain: What to call the domain of all of it; None: what the records say, else the file's name.
        domain_field: Field of a record that names its domain.
    """

    paths: tuple[Path, ...]
    shape: Shape | None = None
    domain: str | None = None
    domain_field: str | None = None

    @property
    def default_domain(self) -> str:
        """The domain of what names none."""
        return self.domain or self.paths[0].name.split(".")[0] or "trace"


@dataclass
class Recording:
    """Routing of single tokens.

    Attributes:
        engine: What ran the model.
        layers: MoE layers, decoder block indices.
        blocks: The routing; what is noted is complete once it is exhausted.
        num_experts: E; None: the largest id met tells.
        ranked: Whether the experts of a token are in the order of their weights.
        model: The model's name, where the records say it.
        notes: What was left out or is assumed.
    """

    engine: str
    layers: list[int]
    blocks: Iterator[Block]
    num_experts: int | None = None
    ranked: bool = True
    model: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Counted:
    """How often each expert was selected; single tokens and documents are not known.

    Attributes:
        engine: What ran the model.
        layers: MoE layers, decoder block indices.
        domains: Names of the domains.
        counts_LDE: Selections by layer, domain, expert.
        tokens_D: Tokens of each domain.
        num_experts_per_token: K.
        model: The model's name, where the file says it.
        notes: What was left out or is assumed.
    """

    engine: str
    layers: list[int]
    domains: list[str]
    counts_LDE: np.ndarray
    tokens_D: np.ndarray
    num_experts_per_token: int
    model: str | None = None
    notes: list[str] = field(default_factory=list)


def layers_of(num_recorded: int, shape: Shape | None, place: str) -> tuple[list[int], list[int]]:
    """Which indices of an axis of layers hold MoE layers, and which layers these are.

    Args:
        num_recorded: Length of the axis: all decoder blocks (those without experts are dropped), or the MoE layers.
        shape: The model's; None: every index is taken for a layer of its number.
        place: For the message.

    Raises:
        UsageError: The model has neither as many blocks nor as many MoE layers.
    """
    if shape is None or num_recorded == shape.num_blocks == len(shape.layers):
        return list(range(num_recorded)), list(range(num_recorded))
    if num_recorded == len(shape.layers):
        return list(range(num_recorded)), list(shape.layers)
    if num_recorded == shape.num_blocks:
        return list(shape.layers), list(shape.layers)
    raise UsageError(
        f"{place}: routing of {num_recorded} layers",
        expected=f"{shape.num_blocks} (all blocks of the model) or {len(shape.layers)} (its MoE layers)",
        remedy="give the model that was traced",
    )


def checked_k(num_recorded: int, shape: Shape | None, place: str) -> None:
    """Refuses another number of experts per token than the model has."""
    if shape is not None and num_recorded != shape.num_experts_per_token:
        raise UsageError(
            f"{place}: {num_recorded} experts per token",
            expected=f"{shape.num_experts_per_token}, as the model has",
            remedy="give the model that was traced",
        )


def counted_tokens(counts_LE: np.ndarray, num_experts_per_token: int, layers: Sequence[int], place: str) -> int:
    """Tokens that counts of selections are from: the same in every layer.

    Raises:
        UsageError: Sums of counts that are no multiple of K, or differ between layers.
    """
    sums_L = counts_LE.sum(axis=1)
    uneven = [layer for layer, total in zip(layers, sums_L.tolist(), strict=True) if total % num_experts_per_token]
    if uneven:
        raise UsageError(
            f"{place}: the counts of layer {spelled(uneven)} do not add up to a multiple of {num_experts_per_token}",
            expected=f"{num_experts_per_token} selections for each token",
            remedy="give the model that was traced; a recording that was cut off can't be used",
        )
    tokens = sorted({int(total) // num_experts_per_token for total in sums_L})
    if len(tokens) > 1:
        raise UsageError(
            f"{place}: layers count between {tokens[0]:,} and {tokens[-1]:,} tokens",
            expected="the same tokens at every layer",
            remedy="a recording that was cut off, or that lacks layers, can't be used",
        )
    return tokens[0]


def needs_model(place: str, what: str) -> UsageError:
    """The error of a format that does not say enough of the model."""
    return UsageError(
        f"{place} does not say {what}", expected="the model that was traced", remedy="name it with `model`"
    )


def missing_ranks(found: Sequence[int], number: int | None = None) -> list[str]:
    """A note that names the ranks of which there is no file."""
    ranks = range(number if number is not None else max(found, default=-1) + 1)
    missing = [rank for rank in ranks if rank not in found]
    return [f"no file of rank {spelled(missing)}: their tokens are missing"] if missing else []
