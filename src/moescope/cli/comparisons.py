"""One command for each comparison of passes over the same text, made of its entry in the registry and its options."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter as Argument
from inspect import Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.analyses import registry, words
from moescope.cli.capture import (
    DEFAULT_FOLDER,
    command_line,
    kept,
    load,
    may_download,
    nearby,
    open_corpus,
    raise_failures,
)
from moescope.cli.options import CompareOptions, ModelOptions, WholeDepthOptions
from moescope.cli.questions import own_options
from moescope.cli.terminal import counting, print_line, print_note, quiet, working

if TYPE_CHECKING:
    from moescope.errors import MoescopeError
    from moescope.results import Outcome


def comparison(
    name: str,
    common: type[CompareOptions | WholeDepthOptions],
    show: Callable[[Any], None],
    *,
    num_passes: Callable[[Any], int] = lambda own: 1,
) -> Callable[..., None]:
    """A comparison's command: its own options first, then those of every run.

    Args:
        name: The comparison's name in the registry.
        common: Options of model, text and output.
        show: Prints the finished run.
        num_passes: How often each token is counted, for the progress bar, from the comparison's own options.
    """
    entry = next(entry for entry in registry.entries("comparison") if entry.name == name)
    options_class = entry.options_class()
    assert options_class is not None

    def run(*, own: Any, options: Any = None) -> None:
        options = options or common()
        given = options_class(**vars(own))
        with quiet(verbose=options.verbose, downloads=may_download(options)):
            failures: list[MoescopeError] = []
            outcome, path = _run(entry, given, options, num_passes(given), failures)
            show(outcome)
            print_line(f"\nResults: {nearby(path)}")
        raise_failures(failures)

    run.__name__ = name
    run.__doc__ = f"{entry.summary}\n\n{_explanation(name)}"
    kinds: dict[str, Any] = {"own": own_options(options_class, entry.title), "options": common | None}
    defaults = {"own": Argument.empty, "options": None}
    arguments = [Argument(key, Argument.KEYWORD_ONLY, default=defaults[key], annotation=kinds[key]) for key in kinds]
    run.__signature__ = Signature(arguments)  # type: ignore[attr-defined]
    run.__annotations__ = kinds
    return run


def _run(
    entry: registry.Entry, own: Any, options: Any, num_passes: int, failures: list[MoescopeError]
) -> tuple[Outcome, Path]:
    with working("starting"):
        from moescope.results import ResultsFolder

        compare = entry.load(entry.analysis)

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / entry.name, force=options.force)
    model = load(options)
    corpus = open_corpus(options)
    more = {"layers": options.layers} if isinstance(options, ModelOptions) else {}
    with kept(failures), folder:
        with counting("comparing", options.num_tokens * num_passes) as progress:
            outcome: Outcome = compare(
                model,
                corpus=corpus,
                **vars(own),
                **more,
                num_tokens=options.num_tokens,
                seed=options.seed,
                sequence_length=options.sequence_length,
                batch_tokens=options.batch_tokens,
                command_line=command_line(),
                progress=progress,
            )
        for text in outcome.manifest.notes:
            print_note(text)
        with working("writing results, drawing figures"):
            outcome.write(folder)
    return outcome, folder.path


def _explanation(name: str) -> str:
    """What the command writes, and the definitions of its numbers, for a help page."""
    lines = [
        "Runs the same text through the model in each state that is compared and writes tables (.csv, .parquet), "
        "figures (.pdf, .png) and a manifest to the folder --out.",
    ]
    lines += [f"**{term}**: {text}" for term, text in words.definitions(name).items()]
    return "\n\n".join(lines)
