"""Names of domains, files and fields as messages show them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from moescope.measures.constants import ALL

MAX_SHOWN = 30
MAX_LENGTH = 60
EMPTY = "(empty)"


def shown(name: str, length: int = MAX_LENGTH) -> str:
    """A name of any length in a sentence: cut after `length` characters, and `(empty)` where there is nothing."""
    name = name if len(name) <= length else f"{name[: length - 1]}…"
    return name if name.strip() else EMPTY


def listed(names: Collection[str]) -> str:
    """Names in a sentence, the first 30 of them."""
    first = [shown(name) for _, name in zip(range(MAX_SHOWN), names, strict=False)]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def printable(name: str) -> str:
    r"""A file's name as valid Unicode: bytes that are not UTF-8 as `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def labels_of(domains: Sequence[str]) -> tuple[str, ...]:
    """What tables call domains, each by another label: their names, where these can stand in a table.

    `all` is the label of all domains together; a domain of that name is `all (domain)`. One without a visible
    character is `(empty)`.
    """
    taken = {ALL, *domains}
    labels = []
    for name in domains:
        label = name
        if name == ALL or not name.strip():
            wanted = f"{ALL} (domain)" if name == ALL else EMPTY
            label, number = wanted, 2
            while label in taken:
                label, number = f"{wanted} {number}", number + 1
            taken.add(label)
        labels.append(label)
    return tuple(labels)
