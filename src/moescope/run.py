"""The public `capture`: names -> analyses -> their statistics, one forward pass -> tables, figures, a folder."""

from __future__ import annotations

import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope import analyses as registry
from moescope.analyses.base import Analysis, Context
from moescope.corpora import Sampler
from moescope.errors import MoescopeWarning, UsageError
from moescope.one_pass import feed
from moescope.results import DomainSample, Manifest, ResultsFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.analyses.relations import Related
    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic


class _Tables(Mapping[str, "xr.Dataset"]):
    """Tables by name, each made when first looked at and kept."""

    def __init__(self, names: Sequence[str], make: Callable[[str], xr.Dataset]) -> None:
        self._names = tuple(names)
        self._make = make
        self._made: dict[str, xr.Dataset] = {}

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self._made:
            if name not in self._names:
                raise KeyError(f"{name}: not among the {self}")
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"tables of {', '.join(self._names)}"


@dataclass
class Run:
    """What one forward pass over a corpus told.

    Attributes:
        context: What was looked at.
        analyses: The analyses asked for, by name.
        statistics: Their accumulators, by key; analyses may share one.
        manifest: What was run, on what, with what.
    """

    context: Context
    analyses: dict[str, Analysis]
    statistics: dict[str, Statistic]
    manifest: Manifest

    @cached_property
    def tables(self) -> Mapping[str, xr.Dataset]:
        """One labelled dataset per analysis, by its name, made when first asked for.

        What making one warns of is among the manifest's notes from then on.
        """
        return _Tables(tuple(self.analyses), self._table)

    def _table(self, name: str) -> xr.Dataset:
        raised: list[warnings.WarningMessage] = []
        try:
            with warnings.catch_warnings(record=True) as raised:
                return self.analyses[name].table(self.statistics, self.context)
        finally:
            for warning in raised:
                if issubclass(warning.category, MoescopeWarning):
                    self.manifest.notes.append(str(warning.message))
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    @cached_property
    def relations(self) -> list[Related]:
        """How one table's answer goes with another's; empty where the run has no two that are known to belong."""
        from moescope.analyses.relations import relate

        return relate(self.tables, seed=self.context.seed)

    def frames(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The tables as rows, by file name without suffix."""
        from moescope.analyses import relations

        for name, analysis in self.analyses.items():
            yield from analysis.frames(self.tables[name], self.context).items()
        yield from relations.frames(self.relations).items()

    def arrays(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """What would be silly as rows, by file name without suffix."""
        for name, analysis in self.analyses.items():
            yield from analysis.arrays(self.tables[name], self.context).items()

    def files(self) -> Iterator[tuple[str, str]]:
        """Text files that are neither: path inside the results folder, text."""
        for name, analysis in self.analyses.items():
            yield from analysis.files(self.tables[name], self.context)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Figures by file name without suffix, one at a time."""
        from moescope.analyses import relations

        for name, analysis in self.analyses.items():
            yield from analysis.figures(self.tables[name], self.context)
        if self.relations:
            yield "relations", relations.figure(self.relations, self.context)

    def write(self, folder: ResultsFolder) -> None:
        """Writes tables, arrays, state, figures and manifest into a folder in the making.

        Figures first: they are drawn by other processes while the tables of the analyses that follow are made.
        """
        folder.write_figures(self.figures())
        for name, frame in self.frames():
            folder.write_table(name, frame)
        for name, arrays in self.arrays():
            folder.write_arrays(name, arrays)
        for name, text in self.files():
            folder.write_text(name, text)
        for name, statistic in self.statistics.items():
            folder.write_state(name, statistic)
        folder.write_manifest(self.manifest)

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Writes everything to a folder.

        Raises:
            ResultsError: The folder exists and `force` is not set, or it is not one of moescope's.
            EnvironmentFailure: The disk refuses.
        """
        with ResultsFolder(out, force=force) as folder:
            self.write(folder)
        return folder.path


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
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Runs the corpus through the model once and answers every question asked.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`; None for questions that need no text. Where none does, it is not read.
        analyses: Names of analyses, or analyses made with options of their own, as `Similarity(method="cosine")`; None
            for all that make sense for model and corpus (a corpus of one domain has nothing to compare; the
            manifest's notes say what was left out).
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
        progress: Called after each batch with the number of tokens counted in it.

    Returns:
        The run: `.tables`, `.statistics`, `.manifest`, `.figures()`, `.save(path)`.

    Raises:
        UsageError: An analysis, layer or number that does not exist or makes no sense, each with a remedy.
    """
    started = time.perf_counter()
    if predictions and not model.complete:
        raise UsageError(
            f"predictions need all {model.num_blocks} blocks of {model.name}, and fewer are loaded",
            remedy="load the model without `layers`",
        )
    chosen = model.check_layers(layers)
    context = Context(
        model=model,
        layers=tuple(chosen),
        domains=corpus.domains if corpus is not None else (),
        groups=corpus.groups if corpus is not None else {},
        corpus_name=corpus.name if corpus is not None else "",
        num_tokens=num_tokens if corpus is not None else 0,
        seed=seed,
        predictions=predictions if predictions is not None else (layers is None and model.complete),
        corpus_fingerprint=corpus.fingerprint if corpus is not None else "",
    )
    asked, left_out = _asked(analyses, skip, context)
    statistics = _statistics(asked, context)
    sampler = None
    options: dict[str, Any] = {}
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
        feed(model, sampler, statistics.values(), layers=chosen, on_batch=progress)
        options |= {
            "num_tokens": num_tokens,
            "sequence_length": sequence_length,
            "batch_tokens": batch_tokens,
            "predictions": context.predictions,
        }
        context = replace(context, num_tokens=int(sampler.num_tokens_D.sum()))
    options |= {name: analysis.options for name, analysis in asked.items() if analysis.options}
    manifest = make_manifest(context, corpus, sampler, options, list(asked), command, left_out)
    manifest.wall_seconds = round(time.perf_counter() - started, 3)
    return Run(context, asked, statistics, manifest)


def _asked(
    analyses: Sequence[str | Analysis] | None, skip: Sequence[str], context: Context
) -> tuple[dict[str, Analysis], list[str]]:
    """The analyses by name; and of those that no one asked for by name, which can't be answered and why."""
    if analyses is not None and not analyses:
        raise UsageError("no analysis was asked for", expected=f"one or more of {', '.join(registry.names())}")
    asked: dict[str, Analysis] = {}
    left_out: list[str] = []
    for given in analyses if analyses is not None else [name for name in registry.names() if name not in skip]:
        analysis = registry.find(given) if isinstance(given, str) else given
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
                    "--domain-field",
                )
            analysis.check(context)
        except UsageError as error:
            if analyses is not None:
                raise
            left_out.append(f"{analysis.name} was left out: {error.found}")
            continue
        asked[analysis.name] = analysis
    return asked, left_out


def _statistics(asked: dict[str, Analysis], context: Context) -> dict[str, Statistic]:
    """All accumulators of all analyses; one is shared by those that declare it under the same key."""
    statistics: dict[str, Statistic] = {}
    for name, analysis in asked.items():
        for key, statistic in analysis.statistics(context).items():
            known = statistics.setdefault(key, statistic)
            if type(known) is not type(statistic) or known.parameters != statistic.parameters:
                raise RuntimeError(f"analysis {name} declares statistic {key!r} differently from another analysis")
    return statistics


def make_manifest(
    context: Context,
    corpus: Corpus | None,
    sampler: Sampler | None,
    options: dict[str, Any],
    asked: list[str],
    command: str,
    notes: Sequence[str] = (),
) -> Manifest:
    """What was run, on what, with what; wall time is left to be filled in."""
    model = context.model
    domains: list[DomainSample] = []
    if corpus is not None and sampler is not None:
        notes = [*corpus.notes, *notes, *sampler.warnings]
        options = {**options, "window": sampler.window}
        counts = zip(corpus.domains, sampler.num_tokens_D, sampler.num_documents_D, strict=True)
        domains = [
            DomainSample(name=name, group=corpus.groups.get(name), num_tokens=int(tokens), num_documents=int(documents))
            for name, tokens, documents in counts
        ]
    return Manifest(
        command=command,
        moescope_version=importlib.metadata.version("moescope"),
        torch_version=importlib.metadata.version("torch"),
        transformers_version=importlib.metadata.version("transformers"),
        model=model.name,
        revision=model.revision,
        family=model.family,
        config_hash=model.config_hash,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        corpus=corpus.name if corpus is not None else None,
        corpus_fingerprint=corpus.fingerprint if corpus is not None else None,
        domains=domains,
        num_tokens=context.num_tokens,
        seed=context.seed,
        layers=list(context.layers),
        num_experts=model.num_experts,
        num_experts_per_token=model.num_experts_per_token,
        analyses=asked,
        options=options,
        notes=list(notes),
        wall_seconds=0.0,
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
