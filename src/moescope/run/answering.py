"""From the questions asked to their tables: which are answered, in which order, with which accumulators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moescope.analyses import registry
from moescope.analyses.base import Analysis, Given
from moescope.context import Context
from moescope.errors import UsageError, noted

if TYPE_CHECKING:
    import xarray as xr

    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic


@dataclass(frozen=True)
class Step:
    """An analysis to be answered: because it was asked for, or because another needs its table."""

    analysis: Analysis
    needs: Mapping[str, Analysis]


def steps_of(asked: Iterable[Analysis], context: Context) -> tuple[list[Step], dict[Analysis, Analysis]]:
    """What to answer, each once, in an order in which every analysis comes after those it needs.

    Returns:
        The steps; and for each analysis asked for the one among them that answers it.
    """
    asked = list(asked)
    steps: list[Step] = []

    def planned(analysis: Analysis) -> Analysis:
        """The analysis whose table answers this one; it is among the steps."""
        known = next((step.analysis for step in steps if step.analysis.answers(analysis)), None)
        if known is not None:
            return known
        wanted = next((other for other in asked if other.answers(analysis)), analysis)
        steps.append(Step(wanted, {name: planned(other) for name, other in wanted.needs(context).items()}))
        return wanted

    return steps, {analysis: planned(analysis) for analysis in asked}


@dataclass(frozen=True)
class Answers:
    """Each analysis' table, or why it has none."""

    tables: dict[Analysis, xr.Dataset]
    failed: dict[Analysis, Exception]


def answer(
    model: MoEModel | None,
    steps: Sequence[Step],
    statistics: Mapping[str, Statistic[Any]],
    context: Context,
    notes: list[str],
) -> Answers:
    """First all that takes the model, then all tables; what fails is kept apart, so that the others are not lost.

    Without a model (routing was recorded earlier) nothing is measured: no analysis that takes one was chosen.
    """
    measured: dict[Analysis, Any] = {}
    answers = Answers({}, {})
    with noted(notes):
        if model is not None:
            for step in steps:
                try:
                    measured[step.analysis] = step.analysis.measure(model, statistics, context)
                except Exception as error:
                    answers.failed[step.analysis] = error
        for step in steps:
            if step.analysis in answers.failed:
                continue
            given = Given(
                measured.get(step.analysis),
                {name: answers.tables[other] for name, other in step.needs.items() if other in answers.tables},
                {
                    name: str(getattr(why, "found", why))
                    for name, other in step.needs.items()
                    if (why := answers.failed.get(other)) is not None
                },
            )
            try:
                answers.tables[step.analysis] = step.analysis.table(statistics, context, given)
            except Exception as error:
                answers.failed[step.analysis] = error
    return answers


def chosen_analyses(
    analyses: Sequence[str | Analysis] | None, skip: Sequence[str], context: Context, notes: list[str]
) -> dict[str, Analysis]:
    """The analyses by name; those of a run of everything that can't be answered are left out and noted."""
    if analyses is not None and not analyses:
        raise UsageError("no analysis was asked for", expected=f"one or more of {', '.join(registry.names())}")
    asked: dict[str, Analysis] = {}
    everything = analyses is None
    for given in analyses if analyses is not None else [name for name in registry.names() if name not in skip]:
        analysis = registry.find(given, in_report=everything) if isinstance(given, str) else given
        try:
            if analysis.needs_text and not context.domains:
                raise UsageError(
                    f"{analysis.name} looks at what a model does with text, and no corpus was given",
                    remedy='give one, such as load_corpus("embedded")',
                )
            analysis.check_recorded(context)
            if context.recorded is None and len(context.domains) < analysis.min_domains:
                raise UsageError(
                    f"corpus {context.corpus_name} has {len(context.domains)} domain ({', '.join(context.domains)}), "
                    f"and {analysis.name} compares domains",
                    expected=f"{analysis.min_domains} domains or more",
                    remedy="use a folder with a sub-folder for each domain, or name the domain field with "
                    "`domain_field`",
                )
            analysis.check(context)
            notes.extend(analysis.left_out(context))
        except UsageError as error:
            if not everything:
                raise
            notes.append(f"{analysis.name} was left out: {error.found}")
            continue
        asked[analysis.name] = analysis
    return asked


def statistics_of(steps: Sequence[Step], context: Context) -> dict[str, Statistic[Any]]:
    """All accumulators of all analyses; one is shared by those that declare it under the same key."""
    statistics: dict[str, Statistic[Any]] = {}
    for step in steps:
        for key, statistic in step.analysis.statistics(context).items():
            known = statistics.setdefault(key, statistic)
            if type(known) is not type(statistic) or known.parameters != statistic.parameters:
                raise RuntimeError(
                    f"analysis {step.analysis.name} declares statistic {key!r} differently from another analysis"
                )
    return statistics
