"""The page's fixed words, from assets/words.toml: titles and definitions by analysis, captions by figure."""

from __future__ import annotations

import re
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
    """What a figure shows: for those who read it and for those who cannot see it. Else its file name in words.

    One caption serves the figures of all layers: `similarity_layer_N` is that of `similarity_layer_7`, its N a 7; and
    one those of all experts: `profile_LNEN` is that of `profile_L07E31`, with `{layer}` and `{expert}`.
    """
    captions = _words()["captions"]
    if figure in captions:
        return str(captions[figure])
    number = re.search(r"(?<=_)\d+(?=_|$)", figure)
    if number and (general := figure[: number.start()] + "N" + figure[number.end() :]) in captions:
        return re.sub(r"\bN\b", number.group(), str(captions[general]))
    expert = re.search(r"L(\d+)E(\d+)$", figure)
    if expert and (general := figure[: expert.start()] + "LNEN") in captions:
        return str(captions[general]).format(layer=int(expert[1]), expert=int(expert[2]))
    return figure.replace("_", " ").capitalize() + "."
