"""The public `capture`: names -> analyses -> their statistics, one forward pass -> tables, figures, a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.analyses import registry
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.finding import Fact, Finding, as_records, facts, find
from moescope.analyses.sizes import check_memory
from moescope.arguments import check_types
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.errors import AnalysisFailed, ModelError, UsageError, noted
from moescope.one_pass import feed
from moescope.results import Made, Manifest, Outcome, Part, Results
from moescope.results.manifest import make_manifest
from moescope.results.writing import failure
from moescope.statistics.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

FINDINGS, FACTS = "findings.json", "facts.json"


@dataclass(repr=False)
class Run(Outcome):
    """What one forward pass over a corpus measured.

    Attributes:
        context: What was looked at.
        analyses: The analyses answered, by name.
        statistics: Their accumulators, by key; analyses may share one.
        made: One labeled dataset per analysis, by its name.
        manifest: What was run, on what, with what.
    """

    context: Context
    analyses: dict[str, Analysis]
    statistics: dict[str, Statistic[Any]]
    made: dict[str, xr.Dataset]
    manifest: Manifest
    _rows_made: dict[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict, init=False, compare=False)

    @property
    def tables(self) -> Mapping[str, xr.Dataset]:
        """One labeled dataset per analysis, by its name."""
        return self.made

    @cached_property
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """The tables as rows, by file name without suffix."""
        return {name: frame for question in self.made for name, frame in self._rows(question).items()}

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        """Figures by file name without suffix, each drawn when it is asked for."""
        return Made(dict(drawing for question in self.made for drawing in self._drawings(question)))

    @property
    def arrays(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Matrices of experts by experts and the like, by file name without suffix."""
        return {name: arrays for question in self.made for name, arrays in self._arrays(question).items()}

    @property
    def files(self) -> Mapping[str, str]:
        """Text files, by path inside the results folder; findings and facts are among them."""
        return dict(file for question in self.made for file in self._texts(question)) | self._said()

    def parts(self) -> Iterator[Part]:
        """Each question, and what is said of all of them after them."""
        for question in self.made:
            yield Part(
                question,
                partial(self._rows, question),
                partial(self._arrays, question),
                lambda question=question: dict(self._texts(question)),  # type: ignore[misc]
                lambda question=question: Made(dict(self._drawings(question))),  # type: ignore[misc]
            )
        yield Part("findings", files=self._said)

    def _rows(self, question: str) -> Mapping[str, pd.DataFrame]:
        if question not in self._rows_made:
            self._rows_made[question] = self.analyses[question].frames(self.made[question], self.context)
        return self._rows_made[question]

    def _arrays(self, question: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        return self.analyses[question].arrays(self.made[question], self.context)

    def _texts(self, question: str) -> Iterator[tuple[str, str]]:
        return self.analyses[question].files(self.made[question], self.context)

    def _drawings(self, question: str) -> Iterator[Drawing]:
        return self.analyses[question].figures(self.made[question], self.context)

    def _said(self) -> dict[str, str]:
        said = {FINDINGS: as_records(self.findings), FACTS: as_records(self.facts)}
        return {name: json.dumps(records, indent=2, ensure_ascii=False) + "\n" for name, records in said.items()}

    @property
    def state(self) -> Mapping[str, Statistic[Any]]:
        """The accumulated statistics by key, to merge or continue."""
        return self.statistics

    @cached_property
    def findings(self) -> list[Finding]:
        """Claims and whether the run shows them, in sentences computed from its tables."""
        return find(Results(Path(), self.manifest, dict(self.frames)))

    @cached_property
    def facts(self) -> list[Fact]:
        """Levels of numbers in the run's sample, in sentences computed from its tables."""
        return facts(Results(Path(), self.manifest, dict(self.frames)))


def capture(
    model: MoEModel,
    corpus: Corpus | None,
    analyses: Sequence[str | Analysis] | None = None,
    num_tokens: int = 100_000,
    layers: Sequence[int] | None = None,
    *,
    skip: Sequence[str] = (),
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    predictions: bool | None = None,
    command: str = "capture",
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Runs the corpus through the model once and answers every question asked.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`; None for questions that need no text. Where none does, it is not read.
        analyses: Names of analyses, or analyses made with options of their own, as `Similarity(method="cosine")`; None
            for all that make sense for model and corpus, with the smaller samples that a report takes
            (`registry.Entry.in_report`); a corpus of one domain has nothing to compare, and the manifest's notes say
            what was left out.
        num_tokens: Tokens to count, split evenly over the corpus' domains.
        layers: MoE layers (decoder block indices); None for all. The pass stops after the deepest.
        skip: Names of analyses to leave out of all there are.
        seed: Chooses documents, windows and replicates.
        sequence_length: Longest window of a document, in tokens; None: what the sampling rule and the model allow. The
            manifest's `window` is what was taken of a document at most.
        batch_tokens: Padded tokens in a batch.
        predictions: Whether to run the whole depth for the readings that need predicted tokens. None: only if all
            layers are looked at.
        command: What to call this run in its manifest.
        command_line: The command as it was typed, for the manifest.
        progress: Called after each batch with the number of tokens counted in it.

    Returns:
        The run: `.tables`, `.frames`, `.figures`, `.findings`, `.statistics`, `.manifest`, `.save(path)`.

    Raises:
        UsageError: An analysis, layer or number that does not exist or makes no sense, each with a remedy.
        EnvironmentFailure: The counts and samples do not fit into memory; nothing was read.
        AnalysisFailed: An analysis failed after the pass; its `run` holds all that was answered.
    """
    started = time.perf_counter()
    numbers = {"num_tokens": num_tokens, "sequence_length": sequence_length, "batch_tokens": batch_tokens, "seed": seed}
    check_types(model, corpus, analyses, skip, predictions, **numbers)
    if predictions and not model.complete:
        raise UsageError(
            f"predictions need all {model.num_blocks} blocks of {model.name}, and fewer are loaded",
            remedy="load the model without `layers`",
        )
    model.refresh()
    chosen = model.check_layers(layers)
    context = Context(
        model=model.info,
        layers=tuple(chosen),
        domains=corpus.labels if corpus is not None else (),
        groups=corpus.label_groups if corpus is not None else {},
        corpus_name=corpus.name if corpus is not None else "",
        num_tokens=num_tokens if corpus is not None else 0,
        seed=seed,
        predictions=predictions if predictions is not None else (layers is None and model.complete),
        corpus_fingerprint=corpus.fingerprint if corpus is not None else "",
    )
    notes: list[str] = []
    with noted(notes):
        asked = _asked(analyses, skip, context, notes)
    if context.domains:
        check_memory(asked.values(), context)
    with noted(notes):
        steps, by = _steps(asked.values(), context)
        statistics = _statistics(steps, context)
    sampler = None
    options: dict[str, Any] = {}
    pass_seconds = 0.0
    if corpus is None or not any(analysis.needs_text for analysis in asked.values()):
        corpus = None
        without: dict[str, Any] = {"domains": (), "groups": {}, "corpus_name": "", "corpus_fingerprint": ""}
        context = replace(context, num_tokens=0, **without)
    else:
        sampler = Sampler(
            corpus,
            model.tokenizer,
            num_tokens=num_tokens,
            seed=seed,
            sequence_length=sequence_length,
            max_positions=model.max_positions,
            batch_tokens=batch_tokens,
        )
        pass_started = time.perf_counter()
        feed(model, sampler, statistics.values(), layers=chosen, on_batch=progress)
        pass_seconds = time.perf_counter() - pass_started
        if model.info != context.model:
            raise ModelError(
                f"{model.name} was changed while its routing was read",
                expected="one model throughout a run",
                remedy="change routers, weights and interventions before or after, not from another thread",
            )
        provenance = Provenance.of(context.model.identity, sampler.identity)
        for statistic in statistics.values():
            statistic.provenance = provenance
        options |= {
            "num_tokens": num_tokens,
            "sequence_length": sequence_length,
            "batch_tokens": batch_tokens,
            "predictions": context.predictions,
        }
        context = replace(context, num_tokens=int(sampler.num_tokens_D.sum()))
    options |= {name: analysis.options for name, analysis in asked.items() if analysis.options}
    if command_line is not None:
        options["command_line"] = command_line
    answers = _answer(model, steps, statistics, context, notes)
    made = {name: answers.tables[by[analysis]] for name, analysis in asked.items() if by[analysis] in answers.tables}
    for entry in registry.entries("joint"):
        joint = registry.find(entry.name)
        try:
            table = joint.table({}, context, Given(tables=made))
        except Exception as why:
            asked[entry.name], answers.failed[joint] = joint, why
            continue
        if table.data_vars and entry.name not in skip:
            asked[entry.name], made[entry.name] = joint, table
    failed = {
        name: error
        for name, analysis in asked.items()
        if (error := answers.failed.get(by.get(analysis, analysis))) is not None
    }
    manifest = make_manifest(
        context,
        command=command,
        analyses=list(made),
        options=options,
        corpus=corpus,
        sampler=sampler,
        notes=notes,
        failures=[failure(name, error) for name, error in failed.items()],
        pass_seconds=pass_seconds,
        total_seconds=time.perf_counter() - started,
    )
    run = Run(context, {name: asked[name] for name in made}, statistics, made, manifest)
    for name, error in failed.items():
        if not made and (not statistics or isinstance(error, UsageError)):
            raise error
        raise AnalysisFailed(name, error, run) from error
    return run


@dataclass(frozen=True)
class _Step:
    """An analysis to be answered: because it was asked for, or because another needs its table."""

    analysis: Analysis
    needs: Mapping[str, Analysis]


def _steps(asked: Iterable[Analysis], context: Context) -> tuple[list[_Step], dict[Analysis, Analysis]]:
    """What to answer, each once, in an order in which every analysis comes after those it needs.

    Returns:
        The steps; and for each analysis asked for the one among them that answers it.
    """
    asked = list(asked)
    steps: list[_Step] = []

    def planned(analysis: Analysis) -> Analysis:
        """The analysis whose table answers this one; it is among the steps."""
        known = next((step.analysis for step in steps if step.analysis.answers(analysis)), None)
        if known is not None:
            return known
        wanted = next((other for other in asked if other.answers(analysis)), analysis)
        steps.append(_Step(wanted, {name: planned(other) for name, other in wanted.needs(context).items()}))
        return wanted

    return steps, {analysis: planned(analysis) for analysis in asked}


@dataclass(frozen=True)
class _Answers:
    """Each analysis' table, or why it has none."""

    tables: dict[Analysis, xr.Dataset]
    failed: dict[Analysis, Exception]


def _answer(
    model: MoEModel,
    steps: Sequence[_Step],
    statistics: Mapping[str, Statistic[Any]],
    context: Context,
    notes: list[str],
) -> _Answers:
    """First all that takes the model, then all tables; what fails is kept apart, so that the others are not lost."""
    measured: dict[Analysis, Any] = {}
    answers = _Answers({}, {})
    with noted(notes):
        for step in steps:
            try:
                measured[step.analysis] = step.analysis.measure(model, statistics, context)
            except Exception as error:
                answers.failed[step.analysis] = error
        for step in steps:
            if step.analysis in answers.failed:
                continue
            given = Given(
                measured[step.analysis],
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


def _asked(
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
            if len(context.domains) < analysis.min_domains:
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


def _statistics(steps: Sequence[_Step], context: Context) -> dict[str, Statistic[Any]]:
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
