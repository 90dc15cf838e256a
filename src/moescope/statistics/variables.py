"""Labeled numbers: the one way in which tables are put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Variable = tuple[Sequence[str], Any, dict[str, str]]


def variable(dims: str | Sequence[str], values: Any, units: str, definition: str) -> Variable:
    """A variable of an `xarray.Dataset`, with its `units` and `definition` as attributes.

    Args:
        dims: Names of its dimensions.
        values: As many dimensions.
        units: "tokens", "nats", "share", ...; "" where it has none.
        definition: What it is: a formula or a sentence.
    """
    names = (dims,) if isinstance(dims, str) else tuple(dims)
    return names, values, {"units": units, "definition": definition}
