"""What an analysis is: the statistics it needs, the table it makes of them, the figures it draws of the table.

A new question is a folder beside this file and a line in `registry`; the command line, the report and the Python API
have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from moescope.errors import UsageError, of_type, whole_number
from moescope.statistics.samples.routed import NUM_TOKENS, RoutedTokens

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

Drawing = tuple[str, "Callable[[], Figure]"]
"""A figure's file name without suffix, and what draws it."""


@dataclass(frozen=True)
class Given:
    """What the run hands to an analysis beside the statistics.

    Attributes:
        measured: What its `measure` returned; None where it has none.
        tables: The tables of the analyses it needs, by name; those that could not be made are missing.
        refused: Why one that it needs could not be made, by name.
    """

    measured: Any = None
    tables: Mapping[str, xr.Dataset] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


class Analysis(ABC):
    """One question about a model.

    One that has options is a frozen dataclass and inherits from that of its options; each option is a field with a
    default.

    A run calls, in this order: `check`, `needs` and `statistics` before any text is read; `measure` once it was read,
    while the model is at hand; then `table`, which runs no model. Nothing that `frames`, `arrays`, `files` or `figures`
    do changes the table.

    Class attributes:
        name: The command's name and the key in `run.tables`.
        min_domains: Fewest domains it makes sense for.
        needs_text: Whether anything of it comes from text; False for questions about weights alone.
        needs_whole_depth: Its command loads the whole model, whatever layers are looked at.
        columns: What it takes of a trace, by the names of its columns, so that it can be asked of routing that was
            recorded earlier; None: it takes the model.
    """

    name: ClassVar[str]
    min_domains: ClassVar[int] = 1
    needs_text: ClassVar[bool] = True
    needs_whole_depth: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...] | None] = None

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name, for the manifest."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def answers(self, other: Analysis) -> bool:
        """Whether this analysis' table holds all that `other`'s would."""
        return type(self) is type(other) and self.options == other.options

    def check(self, context: Context) -> None:  # noqa: B027 (most questions can always be asked)
        """Refuses what can't be answered, before any text is read.

        Raises:
            UsageError: Says what was asked, what could be, and what to do. In a run of everything there is, the
                analysis is then left out and the run's notes say why.
        """

    def check_recorded(self, context: Context) -> None:
        """Refuses what recorded routing can't answer.

        Raises:
            UsageError: Says which columns are missing.
        """
        if context.recorded is None:
            return
        if self.columns is None:
            raise UsageError(
                f"{self.name} takes the model, and a trace holds what its routers decided",
                remedy="give the model and the text in place of the trace",
            )
        missing = [column for column in self.columns if column not in context.recorded]
        if missing:
            raise UsageError(
                f"the trace has no column {' and no column '.join(missing)}, which {self.name} takes",
                expected=f"a trace with {', '.join(self.columns)}",
                remedy="record it with `moescope trace`, or ask what can be answered without (docs/traces.md)",
            )

    def left_out(self, context: Context) -> Iterator[str]:
        """What of it this run leaves out, and why: a sentence each, for the notes of the run."""
        yield from ()

    def needs(self, context: Context) -> Mapping[str, Analysis]:
        """Other analyses whose tables it draws on, by name; the run makes each once and hands it to `table`."""
        return {}

    @abstractmethod
    def statistics(self, context: Context) -> dict[str, Statistic]:
        """The accumulators it needs itself, empty, on the model's device.

        Analyses of one run share a statistic if they give it the same key, type and parameters.
        """

    def measure(self, model: MoEModel, statistics: Mapping[str, Statistic], context: Context) -> Any:
        """What takes the model after the pass (running it again, reading its weights), for `table`."""
        return None

    @abstractmethod
    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """Labeled numbers, with `units` and `definition` in each variable's attrs; from what it is given alone."""

    @abstractmethod
    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """The table as rows: file name without suffix -> frame; column names are the glossary's."""

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """Matrices of experts by experts and the like: file name without suffix -> named arrays."""
        return {}

    def files(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, str]]:
        """Text files that are neither tables nor arrays: path inside the results folder -> text."""
        yield from ()

    @abstractmethod
    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Figures by file name without suffix, each with what draws it from the table alone."""


def check_types(
    model: Any,
    corpus: Any,
    analyses: Any,
    skip: Any,
    predictions: Any,
    known: Sequence[str],
    *,
    traced: bool = False,
    **numbers: Any,
) -> None:
    """Refuses arguments of other types than `capture` takes.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`, or None.
        analyses: Names and analyses, or None.
        skip: Names.
        predictions: True, False or None.
        known: The names of all analyses.
        traced: Whether `model` is a trace.
        **numbers: Whole numbers by parameter; all but `batch_tokens` may be None.

    Raises:
        UsageError: Names the parameter, what was found and what it takes.
    """
    from moescope.corpora import Corpus
    from moescope.models.given import check_model

    if not traced:
        check_model(model)
    of_type(corpus, (Corpus, NoneType), "corpus", 'what load_corpus gives, such as load_corpus("embedded")')
    of_type(predictions, (bool, NoneType), "predictions", "True, False or None")
    names = f"a list of names: {', '.join(known)}"
    for name, given in (("analyses", [] if analyses is None else analyses), ("skip", skip)):
        of_type(given, (list, tuple, set, frozenset, dict), name, names)
        for item in given:
            of_type(item, str if name == "skip" else (str, Analysis), name, names)
            if isinstance(item, Analysis):
                check_options(item)
    for name, value in numbers.items():
        if value is not None or name == "batch_tokens":
            whole_number(value, name)


def check_options(analysis: Analysis) -> None:
    """Refuses options that are not of the types, or none of the values, that their fields declare.

    Raises:
        UsageError: Names the option, its value and what it takes.
    """
    if not is_dataclass(analysis):
        return
    hints = get_type_hints(type(analysis))
    for option in fields(analysis):
        value = getattr(analysis, option.name)
        if not _fits(value, hints[option.name]):
            raise UsageError(f"`{option.name}={value!r}` of {analysis.name}", expected=_in_words(hints[option.name]))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as options declare them: plain types, unions, literals, tuples of one type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, inner[0]) for item in value)
    if kind is not None or not isinstance(hint, type):
        return True
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(map(_in_words, inner))
    if get_origin(hint) is tuple:
        return f"a tuple of {_in_words(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}.get(
        hint, str(hint)
    )


def routed_tokens(context: Context) -> dict[str, RoutedTokens]:
    """The sample under the key that analyses share it by, no larger than the run."""
    model = context.model
    return {
        "routed_tokens": RoutedTokens(
            layers=context.layers,
            num_experts=model.num_experts,
            num_experts_per_token=model.num_experts_per_token,
            num_samples=max(1, min(NUM_TOKENS, context.num_tokens)),
            seed=context.seed,
            device=model.device,
        )
    }
