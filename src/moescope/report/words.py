"""The page's fixed words, from assets/words.toml: titles and definitions by analysis, captions by figure."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads((resources.files("moescope.report") / "assets" / "words.toml").read_text(encoding="utf-8"))


def known() -> list[str]:
    """The analyses that have words, in the order a reader wants them."""
    return [name for name in _words() if name != "captions"]


def title(analysis: str) -> str:
    """An analysis' name as a heading."""
    return str(_words().get(analysis, {}).get("title", analysis.replace("_", " ").capitalize()))


def definitions(analysis: str) -> dict[str, str]:
    """What an analysis' numbers mean, a sentence each; empty for one without words."""
    return dict(_words().get(analysis, {}).get("definitions", {}))


def caption(figure: str) -> str:
    """What a figure shows: for those who read it and for those who cannot see it. Else its file name in words."""
    return str(_words()["captions"].get(figure, figure.replace("_", " ").capitalize() + "."))
