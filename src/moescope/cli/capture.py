"""The commands that run text through a model: load, one pass, write, print a summary."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.cli.options import CaptureOptions, ModelChoice, ModelOptions, TextOptions, TracedOptions
from moescope.cli.terminal import counting, print_error, print_line, print_note, quiet, show, working
from moescope.errors import AnalysisFailed, IncompleteResults, MoescopeError, UsageError

if TYPE_CHECKING:
    from moescope import Trace
    from moescope.analyses.base import Analysis
    from moescope.corpora import Corpus
    from moescope.models import MoEModel

DEFAULT_FOLDER = Path("results")


def run_analyses(
    names: Sequence[str] | Callable[[], Sequence[Analysis]] | None,
    options: CaptureOptions,
    *,
    command: str,
    skip: Sequence[str] = (),
    check: Callable[[MoEModel], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Answers questions in one pass and leaves a results folder.

    Args:
        names: Analyses to run, or a function that makes them with options of their own (called once torch may be
            imported); None for all that make sense for the corpus.
        options: Everything that was set.
        command: The command's name: the default folder's name, and what the manifest calls the run.
        skip: Where all are run, these are not.
        check: Called with the loaded model, before anything is run; raises if it is not what was asked for.
        finish: Called with the folder once it is complete and in place, so that whatever it does, the run is kept.

    Raises:
        UsageError: Input that cannot be used; nothing was written.
        EnvironmentFailure: The surroundings failed.
        AnalysisFailed: An analysis failed; what the others answered was written.
        IncompleteResults: Something could not be written or drawn, or the page not made; the rest is in place.
    """
    with quiet(verbose=options.verbose, downloads=may_download(options)):
        folder, failures = _run(names, options, command=command, skip=skip, check=check)
        for step in [print_summary] if finish is None else [finish, print_summary]:
            try:
                step(folder)
            except BrokenPipeError:
                raise
            except Exception as error:
                made = getattr(step, "func", step).__name__.removeprefix("write_")
                failures.append(_incomplete(folder, made, error))
    raise_failures(failures)


def _run(
    names: Sequence[str] | Callable[[], Sequence[Analysis]] | None,
    options: CaptureOptions,
    *,
    command: str,
    skip: Sequence[str],
    check: Callable[[MoEModel], None] | None,
) -> tuple[Path, list[MoescopeError]]:
    with working("starting"):
        import moescope
        from moescope.analyses import registry
        from moescope.results import ResultsFolder

    # What can be refused is refused before the pass: first of all an --out that exists.
    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / command, force=options.force)
    for name in skip:
        registry.entry(name)
    asked: list[Analysis] | None = None
    if names is not None:
        given = names() if callable(names) else names
        asked = [registry.find(name) if isinstance(name, str) else name for name in given]
    recorded = options.trace if isinstance(options, TracedOptions) else None
    needs_text = asked is None or any(analysis.needs_text for analysis in asked)
    model: MoEModel | Trace
    corpus, total = None, options.num_tokens or CaptureOptions.num_tokens
    if recorded is not None:
        model = open_recorded(options, recorded)
        total = options.num_tokens or model.facts.num_tokens
    else:
        deep = bool(options.predictions) or any(analysis.needs_whole_depth for analysis in asked or ())
        model = load(options, whole_depth=deep)
        if check is not None:
            check(model)
        corpus = open_corpus(options) if needs_text else None
    layers = model.check_layers(options.layers) if options.layers is not None else None
    failures: list[MoescopeError] = []
    with kept(failures), folder:
        with counting("reading", total) if needs_text else nullcontext() as progress:
            try:
                run = moescope.capture(
                    model,
                    corpus,
                    analyses=asked,
                    skip=skip,
                    num_tokens=options.num_tokens,
                    layers=layers,
                    seed=options.seed,
                    sequence_length=options.sequence_length,
                    batch_tokens=options.batch_tokens,
                    predictions=options.predictions,
                    command=command,
                    command_line=command_line(),
                    progress=progress,
                )
            except AnalysisFailed as error:
                run = error.run
                failures.append(error)
        for text in run.manifest.notes:
            print_note(text)
        with working("writing results, drawing figures"):
            run.write(folder)
    return folder.path, failures


def _incomplete(folder: Path, what: str, error: Exception) -> IncompleteResults:
    from moescope.results.writing import failure, note_failure

    try:
        said = note_failure(folder, what, error)
    except OSError:
        said = failure(what, error)
    return IncompleteResults(folder, [said])


@contextmanager
def kept(failures: list[MoescopeError]) -> Iterator[None]:
    """Goes on where a folder is in place in which something is missing; `raise_failures` says so at the end."""
    try:
        yield
    except IncompleteResults as error:
        failures.append(error)


def raise_failures(failures: list[MoescopeError]) -> None:
    """Ends a command whose results are in place, with something missing.

    Raises:
        MoescopeError: The last of the failures; the others are printed.
    """
    for failure in failures[:-1]:
        print_error("error", str(failure))
    if failures:
        raise failures[-1]


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def load(options: ModelChoice, *, whole_depth: bool = False) -> MoEModel:
    """The model the options name, with no more of it than the layers asked for need."""
    import moescope

    layers = options.layers if isinstance(options, ModelOptions) and not whole_depth else None
    with working(f"loading {options.model}"):
        return moescope.load_model(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            device=options.device,
            layers=layers,
            trust_remote_code=options.trust_remote_code,
        )


def open_recorded(options: CaptureOptions, path: Path) -> Trace:
    """The trace that --trace names.

    Raises:
        UsageError: There is none, or flags were given that it replaces.
    """
    import moescope

    given = options.replaced_by_trace() if isinstance(options, TracedOptions) else []
    if given:
        raise UsageError(
            f"--trace was given with {', '.join(given)}",
            expected="one of the two: a trace has its own model and text",
            remedy="leave one out; `moescope trace import` takes --model for recordings of other engines",
        )
    with working(f"opening {path}"):
        return moescope.open_trace(path)


def open_corpus(options: TextOptions) -> Corpus:
    """The corpus the options name."""
    import moescope

    with working(f"opening {options.corpus}"):
        return moescope.load_corpus(
            options.corpus,
            text_field=options.text_field,
            domain_field=options.domain_field,
            num_domains=options.num_domains,
            domains=options.domains,
            config=options.config,
            split=options.split,
        )


def may_download(options: ModelChoice) -> bool:
    """Whether the model, or the text, may have to be fetched."""
    if isinstance(options, TracedOptions) and options.trace is not None:
        return False
    names = [(options.model, "nano")]
    if isinstance(options, TextOptions):
        names.append((options.corpus, "embedded"))
    return any(name != embedded and not Path(name).exists() for name, embedded in names)


def print_summary(path: Path) -> None:
    """Prints a results folder's key numbers and findings, and where it is."""
    from rich.table import Table
    from rich.text import Text

    from moescope.analyses.finding import Fact, Finding, facts, find
    from moescope.report.keynumbers import per_layer
    from moescope.results.reading import Results

    results = Results.read(path)
    numbers = per_layer(results)
    if numbers.series:
        show(Text(results.headline, style="bold"))
        table = Table(box=None, pad_edge=False)
        for column in numbers.columns:
            table.add_column(column, justify="right")
        for row in numbers.rows:
            table.add_row(*row)
        show(table)
    made: list[Finding | Fact] = [*find(results), *facts(results)]
    lines = [f"- {one.title}. {one.text}" for one in made]
    print_line("\n".join(["", *lines, ""] if lines else [""]))
    print_line(f"Results: {nearby(path)}")


def nearby(path: Path) -> Path:
    """The path from the working directory, where it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
