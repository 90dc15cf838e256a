"""One file per question. `names` lists them and `find` brings one, by file name.

Listing reads the files' text and imports none of them, so that a help page costs no torch.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis


@dataclass(frozen=True)
class Entry:
    """What is known of an analysis without importing it: the first line of its file's docstring, and its `about`."""

    summary: str
    about: str


@cache
def entries() -> dict[str, Entry]:
    """Every analysis by name, in alphabetical order."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Analysis" for base in node.bases):
                found[path.stem] = Entry((ast.get_docstring(tree) or "").split("\n")[0], _about(node))
    return found


def _about(analysis: ast.ClassDef) -> str:
    values = [
        statement.value.value
        for statement in analysis.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        and isinstance(statement.value, ast.Constant)
        and any(ast.unparse(target) == "about" for target in getattr(statement, "targets", None) or [statement.target])  # type: ignore[union-attr]
    ]
    return str(values[0]) if values else "router"


def summaries() -> dict[str, str]:
    """Every analysis' name and summary, in alphabetical order."""
    return {name: entry.summary for name, entry in entries().items()}


def names(about: str | None = None) -> list[str]:
    """The names of all analyses, or of those about the "router", the "experts" or "causes"."""
    return [name for name, entry in entries().items() if about in (None, entry.about)]


def find(name: str) -> Analysis:
    """The analysis of that name.

    Raises:
        UsageError: There is none; says which there are.
    """
    from moescope.analyses.base import Analysis

    if name not in names():
        raise UsageError(f"there is no analysis named {name!r}", expected=f"one of {', '.join(names())}")
    module = importlib.import_module(f"moescope.analyses.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Analysis)]
    return next(kind() for kind in kinds if kind.__module__ == module.__name__)
