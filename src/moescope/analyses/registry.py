"""Every question, as a plain entry: a help page costs no torch, and no file is read to list them.

A new question is a folder and a line here. The order is that of the page.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis

Group = Literal["routing", "experts", "causes", "checkpoints"]
Kind = Literal["question", "joint", "comparison"]


@dataclass(frozen=True)
class Entry:
    """One question.

    Attributes:
        name: The command's name and the key in `run.tables`.
        group: What it is about: routing, experts, causal effects, or training checkpoints.
        summary: One line for `--help` and the page: title, colon, what it measures.
        analysis: "module:Class" of its `Analysis`; of a comparison, the function that runs it.
        options: "module:Class" of its options, a frozen dataclass; None where it has none.
        kind: "question": answered from one forward pass. "joint": from the tables of the run's other questions, so that
            it has no command. "comparison": of several passes, with a command of its own.
        needs_text: Whether anything of it comes from text.
        in_report: Options that differ in a run of everything, which has to answer all questions in a few minutes.
    """

    name: str
    group: Group
    summary: str
    analysis: str
    options: str | None = None
    kind: Kind = "question"
    needs_text: bool = True
    in_report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The summary's part before the colon."""
        return self.summary.partition(":")[0]

    @property
    def package(self) -> str:
        """The question's folder."""
        return self.analysis.partition(":")[0].rpartition(".")[0]

    def part(self, name: str) -> ModuleType | None:
        """A file of the folder by its name (`findings`, ...); None where the question has none."""
        module = f"{self.package}.{name}"
        return importlib.import_module(module) if find_spec(module) is not None else None

    def load(self, reference: str) -> Any:
        """What a "module:name" stands for."""
        module, _, name = reference.partition(":")
        return getattr(importlib.import_module(module), name)

    def options_class(self) -> type | None:
        """The options' dataclass."""
        return None if self.options is None else cast("type", self.load(self.options))


def _entry(name: str, group: Group, summary: str, of: str, *, options: bool = False, **more: Any) -> Entry:
    """An entry whose files have the names that all have."""
    folder = f"moescope.analyses.{more.pop('folder', name)}"
    kind_of_options = f"{folder}.options:{of[0].upper()}{of[1:]}Options" if options else None
    return Entry(name, group, summary, f"{folder}.analysis:{of}", kind_of_options, **more)


ENTRIES: tuple[Entry, ...] = (
    _entry(
        "usage",
        "routing",
        "Usage and specialization: how often each expert is selected, in which domains, with 95 % intervals.",
        "Usage",
    ),
    _entry("entropy", "routing", "Router confidence: entropy, margins and top-1 probability of the router.", "Entropy"),
    _entry(
        "distributions",
        "routing",
        "Routing distributions: how logits, probabilities and weights are spread.",
        "Distributions",
    ),
    _entry(
        "vocabulary",
        "routing",
        "Vocabulary specialization: how far single token types are routed to single experts.",
        "Vocabulary",
    ),
    _entry("overlap", "routing", "Overlap: how far experts share tokens, and token types.", "Overlap"),
    _entry(
        "coactivation",
        "routing",
        "Co-activation: which experts are selected for the same tokens, more or less often than chance.",
        "Coactivation",
    ),
    _entry(
        "paths",
        "routing",
        "Expert paths: how far the expert at one MoE layer predicts the expert at the next.",
        "Paths",
    ),
    _entry(
        "similarity",
        "experts",
        "Similarity of experts: how similar their outputs for the same tokens are, beside a random-weight baseline.",
        "Similarity",
        options=True,
        in_report={"num_samples": 2_048},
    ),
    _entry(
        "weights",
        "experts",
        "Weights of experts: how similar their weights are, and how many directions each uses.",
        "Weights",
        options=True,
        needs_text=False,
    ),
    _entry(
        "contribution",
        "experts",
        "Contribution of experts: how much each adds to its layer's output, and which tokens its output promotes.",
        "Contribution",
        options=True,
    ),
    _entry(
        "map",
        "experts",
        "Map of expert outputs: a two-dimensional projection, and how well neighbors recover expert and domain.",
        "Map",
        options=True,
        in_report={"max_layers": 4},
    ),
    _entry(
        "profile",
        "experts",
        "Profiles of experts: domains and tokens routed to each, top contexts, promoted tokens, nearest experts.",
        "Profile",
        options=True,
        in_report={"effect_tokens": 24_000},
    ),
    _entry(
        "atlas",
        "causes",
        "Causal atlas: how much the loss of each domain rises without each expert.",
        "Atlas",
        options=True,
        in_report={"sample_tokens": 24_000, "num_exact": 24, "exact_tokens": 2_000, "named_tokens": 4_000},
    ),
    _entry(
        "relations",
        "experts",
        "Relations: whether experts that are similar in one measure are similar in another.",
        "Relations",
        kind="joint",
    ),
    _entry(
        "saturation",
        "checkpoints",
        "Router saturation: how early in training the router's decisions were made.",
        "saturation",
        options=True,
        kind="comparison",
    ),
    _entry(
        "ablate",
        "causes",
        "Ablation: how much the loss of each domain rises without some experts of a layer.",
        "ablate",
        folder="ablation",
        options=True,
        kind="comparison",
    ),
    _entry(
        "intervene",
        "causes",
        "Intervention: what scaling or ablating experts does to the next tokens of a prompt.",
        "intervene",
        folder="intervention",
        kind="comparison",
    ),
)


def entries(kind: Kind = "question") -> tuple[Entry, ...]:
    """The entries of a kind, in the page's order."""
    return tuple(entry for entry in ENTRIES if entry.kind == kind)


def names(group: Group | None = None) -> list[str]:
    """The names of all questions that a pass answers, or of those of one group."""
    return [entry.name for entry in entries() if group in (None, entry.group)]


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: There is none; says which there are.
    """
    for known in ENTRIES:
        if known.name == name and known.kind != "comparison":
            return known
    raise UsageError(f"there is no analysis named {name!r}", expected=f"one of {', '.join(names())}")


def find(name: str, *, in_report: bool = False) -> Analysis:
    """The analysis of that name with its default options, or with those of a run of everything.

    Raises:
        UsageError: There is none; says which there are.
    """
    found = entry(name)
    return cast("Analysis", found.load(found.analysis)(**(found.in_report if in_report else {})))
