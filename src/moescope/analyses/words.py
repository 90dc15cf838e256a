"""The fixed words of each question, from its `words.toml`: definitions, and captions of its figures."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from moescope.analyses import registry


@cache
def _words(package: str) -> dict[str, Any]:
    """A question's `words.toml`; empty where it has none."""
    file = resources.files(package) / "words.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@cache
def _captions() -> dict[str, str]:
    """The captions of all figures."""
    return {
        name: caption
        for entry in registry.ENTRIES
        for name, caption in _words(entry.package).get("captions", {}).items()
    }


def _entry(question: str) -> registry.Entry | None:
    return next((entry for entry in registry.ENTRIES if entry.name == question), None)


def title(question: str) -> str:
    """A question's name as a heading."""
    entry = _entry(question)
    return entry.title if entry is not None else question.replace("_", " ").capitalize()


def definitions(question: str) -> dict[str, str]:
    """What a question's numbers mean, a sentence each; empty for one without words."""
    entry = _entry(question)
    return dict(_words(entry.package).get("definitions", {})) if entry is not None else {}


def file_prefixes(question: str) -> list[str]:
    """How the names of a question's tables and figures begin: with its own name, and with those its words list."""
    entry = _entry(question)
    return [question, *(_words(entry.package).get("files", []) if entry is not None else [])]


def caption(figure: str) -> str:
    """What a figure shows: for those who read it and for those who cannot see it. Else its file name in words.

    One caption serves the figures of all layers: `similarity_layer_N` is that of `similarity_layer_7`, its N a 7; and
    one those of all experts: `profile_LNEN` is that of `profile_L07E31`, with `{layer}` and `{expert}`.
    """
    captions = _captions()
    if figure in captions:
        return str(captions[figure])
    number = re.search(r"(?<=_)\d+(?=_|$)", figure)
    if number and (general := figure[: number.start()] + "N" + figure[number.end() :]) in captions:
        return re.sub(r"\bN\b", number.group(), str(captions[general]))
    expert = re.search(r"L(\d+)E(\d+)$", figure)
    if expert and (general := figure[: expert.start()] + "LNEN") in captions:
        return str(captions[general]).format(layer=int(expert[1]), expert=int(expert[2]))
    return figure.replace("_", " ").capitalize() + "."
