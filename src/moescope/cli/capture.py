"""The commands that run text through a model: load, one pass, write, and say what came out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.cli.options import CaptureOptions, ModelOptions
from moescope.cli.terminal import counting, note, quieten, say, show, working

if TYPE_CHECKING:
    from moescope.models import MoEModel

DEFAULT_FOLDER = Path("results")


def run_analyses(
    names: Sequence[str],
    options: CaptureOptions,
    *,
    command: str,
    check: Callable[[MoEModel], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Answers the questions `names` in one pass and leaves a results folder.

    Args:
        names: Analyses to run.
        options: What the reader asked for.
        command: The command's name: the default folder's name, and what the manifest calls the run.
        check: Called with the loaded model, before anything is run; raises if it is not what was asked for.
        finish: Called with the folder once it is complete and in place, so that whatever it does, the run is kept.

    Raises:
        UsageError: Input that cannot be used; nothing was written.
        EnvironmentFailure: The surroundings failed.
    """
    quieten(verbose=options.verbose, downloads=may_download(options) or not _is_local(options.corpus, "embedded"))
    with working("starting"):
        import moescope
        from moescope.results import ResultsFolder

    # Made first: an --out that is taken must be known before an hour's work, not after.
    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / command, force=options.force)
    model = load(options, whole_depth=bool(options.predictions))
    if check is not None:
        check(model)
    layers = model.check_layers(options.layers) if options.layers is not None else None
    with working("opening the corpus"):
        corpus = moescope.load_corpus(
            options.corpus,
            text_field=options.text_field,
            domain_field=options.domain_field,
            num_domains=options.num_domains,
            domains=options.domains,
            config=options.config,
            split=options.split,
        )
    if "vocabulary" in names and layers is not None and options.predictions is None:
        note("predicted tokens are left out: with --layers the model is not run to its end (--predictions does)")
    with folder:
        with counting("reading", options.num_tokens) as progress:
            run = moescope.capture(
                model,
                corpus,
                analyses=list(names),
                num_tokens=options.num_tokens,
                layers=layers,
                seed=options.seed,
                sequence_length=options.sequence_length,
                batch_tokens=options.batch_tokens,
                predictions=options.predictions,
                command=command,
                progress=progress,
            )
        with working("computing tables, drawing figures"):
            run.manifest.options["command_line"] = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            run.write(folder)
    if finish is not None:
        finish(folder.path)
    summarise(folder.path)


def load(options: ModelOptions, *, whole_depth: bool = False) -> MoEModel:
    """The model the options name, with no more of it than the layers asked for need."""
    import moescope

    with working(f"loading {options.model}"):
        return moescope.load_model(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            device=options.device,
            layers=None if whole_depth else options.layers,
        )


def may_download(options: ModelOptions) -> bool:
    """Whether the model may have to be fetched."""
    return not _is_local(options.model, "nano")


def _is_local(name: str, embedded: str) -> bool:
    return name == embedded or Path(name).exists()


def summarise(path: Path) -> None:
    """Prints a results folder's key numbers and findings, and where it is."""
    from rich.table import Table

    from moescope.report.findings import find
    from moescope.report.folder import Results
    from moescope.report.keynumbers import per_layer

    results = Results.read(path)
    numbers = per_layer(results)
    if numbers.series:
        table = Table(title=results.headline, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in numbers.columns:
            table.add_column(column, justify="right")
        for row in numbers.rows:
            table.add_row(*row)
        show(table)
        say("")
    for finding in find(results):
        say(f"- {finding.title}. {finding.text}")
    say(f"\nResults: {path}")
