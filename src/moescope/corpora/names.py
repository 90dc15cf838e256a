"""Names of domains, files and fields as messages show them."""

from __future__ import annotations

import os
from collections.abc import Collection

MAX_SHOWN = 30
MAX_LENGTH = 60


def shown(name: str, length: int = MAX_LENGTH) -> str:
    """A name of any length in a sentence: cut after `length` characters, and `(empty)` where there is nothing."""
    name = name if len(name) <= length else f"{name[: length - 1]}…"
    return name if name.strip() else "(empty)"


def listed(names: Collection[str]) -> str:
    """Names in a sentence, the first 30 of them."""
    first = [shown(name) for _, name in zip(range(MAX_SHOWN), names, strict=False)]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def printable(name: str) -> str:
    r"""A file's name as valid Unicode: bytes that are not UTF-8 as `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
