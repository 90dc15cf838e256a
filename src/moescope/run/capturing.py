"""The public `capture`: names -> analyses -> their statistics, one forward pass -> tables, figures, a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.analyses import registry
from moescope.analyses.base import Analysis, Drawing, Given, check_types
from moescope.analyses.finding import Fact, Finding, as_records, facts, find
from moescope.analyses.sizes import check_memory
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.errors import AnalysisFailed, ModelError, UsageError, noted
from moescope.one_pass import feed
from moescope.results import Made, Manifest, Outcome, Part, Results
from moescope.results.manifest import make_manifest
from moescope.results.phases import ALL_PHASES, by_phase
from moescope.results.writing import failure
from moescope.run.answering import answer, chosen_analyses, statistics_of, steps_of
from moescope.run.replaying import replay
from moescope.statistics.provenance import Provenance
from moescope.statistics.usage import ExpertUsage
from moescope.traces.reading import Trace
from moescope.traces.sampling import TraceSample

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

FINDINGS, FACTS = "findings.json", "facts.json"
NUM_TOKENS = 100_000
"""Tokens of a corpus that are counted where no number is given."""


@dataclass(repr=False)
class Run(Outcome):
    """What one forward pass over a corpus measured.

    Attributes:
        context: What was looked at.
        analyses: The analyses answered, by name.
        statistics: Their accumulators, by key; analyses may share one.
        made: One labeled dataset per analysis, by its name.
        manifest: What was run, on what, with what.
        phases: Where tokens that the model wrote were recorded, the statistics and datasets of prompt and of generated
            tokens alone, by phase; `statistics` and `made` are of all.
    """

    context: Context
    analyses: dict[str, Analysis]
    statistics: dict[str, Statistic[Any]]
    made: dict[str, xr.Dataset]
    manifest: Manifest
    phases: dict[str, tuple[dict[str, Statistic[Any]], dict[str, xr.Dataset]]] = field(default_factory=dict)
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
            self._rows_made[question] = self._made_rows(question)
        return self._rows_made[question]

    def _made_rows(self, question: str) -> Mapping[str, pd.DataFrame]:
        """A question's tables as rows; with `phase` where there are generated tokens."""
        analysis = self.analyses[question]
        rows = analysis.frames(self.made[question], self.context)
        of_phase = {
            phase: analysis.frames(tables[question], self.context)
            for phase, (_, tables) in self.phases.items()
            if question in tables
        }
        return by_phase(of_phase | {ALL_PHASES: rows}) if of_phase else rows

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
        """The accumulated statistics by key, to merge or continue; of phases with `prompt_`, `generated_` before it."""
        return self.statistics | {
            f"{phase}_{key}": statistic
            for phase, (statistics, _) in self.phases.items()
            for key, statistic in statistics.items()
        }

    @cached_property
    def findings(self) -> list[Finding]:
        """Claims and whether the run shows them, in sentences computed from its tables."""
        return find(Results(Path(), self.manifest, dict(self.frames)))

    @cached_property
    def facts(self) -> list[Fact]:
        """Levels of numbers in the run's sample, in sentences computed from its tables."""
        return facts(Results(Path(), self.manifest, dict(self.frames)))


def capture(
    model: MoEModel | Trace,
    corpus: Corpus | None = None,
    analyses: Sequence[str | Analysis] | None = None,
    num_tokens: int | None = None,
    layers: Sequence[int] | None = None,
    *,
    skip: Sequence[str] = (),
    seed: int | None = None,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    predictions: bool | None = None,
    command: str = "capture",
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Runs the corpus through the model once, or reads a trace, and answers every question asked.

    Args:
        model: From `load_model`; or a trace from `open_trace`, which takes the place of model and corpus.
        corpus: From `load_corpus`; None for questions that need no text. Where none does, it is not read.
        analyses: Names of analyses, or analyses made with options of their own, as `Similarity(method="cosine")`; None
            for all that make sense for model and corpus, with the smaller samples that a report takes
            (`registry.Entry.in_report`); a corpus of one domain has nothing to compare, and the manifest's notes say
            what was left out.
        num_tokens: Tokens to count, split evenly over the domains. None: 100,000 of a corpus, all of a trace.
        layers: MoE layers (decoder block indices); None for all. The pass stops after the deepest.
        skip: Names of analyses to leave out of all there are.
        seed: Chooses documents, windows and replicates. None: 0, or the seed that a trace was recorded with.
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
    trace = model if isinstance(model, Trace) else None
    numbers = {"num_tokens": num_tokens, "sequence_length": sequence_length, "batch_tokens": batch_tokens, "seed": seed}
    check_types(model, corpus, analyses, skip, predictions, registry.names(), traced=trace is not None, **numbers)
    if not isinstance(model, Trace):
        model.refresh()
    chosen = model.check_layers(layers)
    context = _context(model, corpus, chosen, num_tokens, seed, predictions, whole=layers is None)
    notes: list[str] = []
    with noted(notes):
        asked = chosen_analyses(analyses, skip, context, notes)
    if context.domains:
        check_memory(asked.values(), context)
    with noted(notes):
        steps, by = steps_of(asked.values(), context)
        phases = trace.phases if trace is not None and len(trace.phases) > 1 else ()
        statistics_by = {phase: statistics_of(steps, context) for phase in (ALL_PHASES, *phases)}
    statistics = statistics_by[ALL_PHASES]
    source: Any = corpus if trace is None else trace.corpus
    sampler: Any = None
    options: dict[str, Any] = {}
    pass_seconds = 0.0
    if source is None or not any(analysis.needs_text for analysis in asked.values()):
        source = None
        without: dict[str, Any] = {"domains": (), "groups": {}, "corpus_name": "", "corpus_fingerprint": ""}
        context = replace(context, num_tokens=0, **without)
    else:
        pass_started = time.perf_counter()
        if isinstance(model, Trace):
            sampler = TraceSample(model, num_tokens, context.seed)
            _replay(model, sampler, statistics_by, chosen, progress)
            options |= {"trace": str(model.path), "num_tokens": num_tokens, "recorded": dict(model.facts.sampling)}
        else:
            sampler = Sampler(
                source,
                model.tokenizer,
                num_tokens=context.num_tokens,
                seed=context.seed,
                sequence_length=sequence_length,
                max_positions=model.max_positions,
                batch_tokens=batch_tokens,
            )
            feed(model, sampler, statistics.values(), layers=chosen, on_batch=progress)
            if model.info != context.model:
                raise ModelError(
                    f"{model.name} was changed while its routing was read",
                    expected="one model throughout a run",
                    remedy="change routers, weights and interventions before or after, not from another thread",
                )
            options |= {
                "num_tokens": context.num_tokens,
                "sequence_length": sequence_length,
                "batch_tokens": batch_tokens,
                "predictions": context.predictions,
            }
        pass_seconds = time.perf_counter() - pass_started
        provenance = Provenance.of(context.model.identity, sampler.identity)
        for statistic in (each for of_phase in statistics_by.values() for each in of_phase.values()):
            statistic.provenance = provenance
        context = replace(context, num_tokens=int(sampler.num_tokens_D.sum()))
    options |= {name: analysis.options for name, analysis in asked.items() if analysis.options}
    if command_line is not None:
        options["command_line"] = command_line
    answers_by = {
        phase: answer(None if isinstance(model, Trace) else model, steps, of_phase, context, notes)
        for phase, of_phase in statistics_by.items()
    }
    made_by = {
        phase: {name: answers.tables[by[each]] for name, each in asked.items() if by[each] in answers.tables}
        for phase, answers in answers_by.items()
    }
    answers, made = answers_by[ALL_PHASES], made_by[ALL_PHASES]
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
        corpus=source,
        sampler=sampler,
        notes=list(dict.fromkeys(notes)),
        failures=[failure(name, error) for name, error in failed.items()],
        pass_seconds=pass_seconds,
        total_seconds=time.perf_counter() - started,
    )
    run = Run(
        context,
        {name: asked[name] for name in made},
        statistics,
        made,
        manifest,
        {phase: (statistics_by[phase], made_by[phase]) for phase in phases},
    )
    for name, error in failed.items():
        if not made and (not statistics or isinstance(error, UsageError)):
            raise error
        raise AnalysisFailed(name, error, run) from error
    return run


def _context(
    model: MoEModel | Trace,
    corpus: Corpus | None,
    layers: Sequence[int],
    num_tokens: int | None,
    seed: int | None,
    predictions: bool | None,
    *,
    whole: bool,
) -> Context:
    """Facts of the run before the pass; refuses what model and corpus, or the trace, can't give."""
    if isinstance(model, Trace):
        if corpus is not None:
            raise UsageError("a corpus was given with a trace", remedy="leave it out: the trace has its own text")
        facts, text = model.facts, model.corpus
        return Context(
            model=model.info,
            layers=tuple(layers),
            domains=text.domains,
            groups=text.groups,
            corpus_name=text.name,
            num_tokens=num_tokens or facts.sampling.get("num_tokens") or facts.num_tokens,
            seed=facts.seed if seed is None else seed,
            predictions="predicted_token_id" in model.columns,
            corpus_fingerprint=text.fingerprint,
            recorded=model.columns,
        )
    if predictions and not model.complete:
        raise UsageError(
            f"predictions need all {model.num_blocks} blocks of {model.name}, and fewer are loaded",
            remedy="load the model without `layers`",
        )
    return Context(
        model=model.info,
        layers=tuple(layers),
        domains=corpus.labels if corpus is not None else (),
        groups=corpus.label_groups if corpus is not None else {},
        corpus_name=corpus.name if corpus is not None else "",
        num_tokens=(NUM_TOKENS if num_tokens is None else num_tokens) if corpus is not None else 0,
        seed=seed or 0,
        predictions=predictions if predictions is not None else (whole and model.complete),
        corpus_fingerprint=corpus.fingerprint if corpus is not None else "",
    )


def _replay(
    trace: Trace,
    sample: TraceSample,
    statistics_by: Mapping[str, dict[str, Statistic[Any]]],
    layers: Sequence[int],
    progress: Callable[[int], None] | None,
) -> None:
    """Updates the statistics of every phase with a trace; of one that knows counts alone, sets those."""
    if "counts" not in trace.columns:
        of_phase = {phase: list(statistics.values()) for phase, statistics in statistics_by.items()}
        replay(trace, of_phase, layers=layers, wanted=sample.wanted, on_batch=progress)
        return
    facts = trace.facts
    kept = [facts.layers.index(layer) for layer in layers]
    statistics_by[ALL_PHASES]["usage"] = ExpertUsage.from_counts(
        trace.counts_LDE()[kept],
        [domain.num_tokens for domain in facts.domains],
        num_experts_per_token=facts.num_experts_per_token,
        layers=layers,
        domains=[domain.name for domain in facts.domains],
    )
