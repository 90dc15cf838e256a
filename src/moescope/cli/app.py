"""The `moescope` command: info, one command per analysis, and report."""

from __future__ import annotations

from collections.abc import Callable

from cyclopts import App, Group, Parameter

import moescope
from moescope import analyses
from moescope.cli.ablate import ablate
from moescope.cli.atlas import atlas
from moescope.cli.capture import run_analyses
from moescope.cli.info import info
from moescope.cli.intervene import intervene
from moescope.cli.map import map_outputs
from moescope.cli.options import CaptureOptions
from moescope.cli.profile import profile
from moescope.cli.report import report
from moescope.cli.saturation import saturation
from moescope.cli.similarity import similarity
from moescope.cli.weights import weights
from moescope.report import words

LOOK = Group.create_ordered("Look at a model")
EVERYTHING = Group.create_ordered("Ask everything at once")
QUESTIONS = {
    "router": Group.create_ordered("Ask the router"),
    "experts": Group.create_ordered("Ask the experts"),
    "causes": Group.create_ordered("Ask for causes"),
}
TRAINING_RUN = Group.create_ordered("Compare a model with its past")
OTHER = Group.create_ordered("Also")

# Analyses whose command has options of its own; the others have theirs without more ado.
OWN_COMMANDS: dict[str, Callable[..., None]] = {
    "atlas": atlas,
    "map": map_outputs,
    "similarity": similarity,
    "profile": profile,
    "weights": weights,
}

HELP = """Look into a Mixture-of-Experts language model: how its router decides, what each expert does, whether experts
specialize.

Everything works offline with the model and the text that ship with moescope; --model and --corpus name others."""

EPILOGUE = """Examples:

- moescope report: all questions in one pass; tables, figures and a page for the browser
- moescope usage --layers 1 7 15: one question, three layers
- moescope info --model allenai/OLMoE-1B-7B-0924: another model
- moescope COMMAND --help: what a command does, its options, units and defaults"""


def build() -> App:
    """The application with all its commands; a new file in `analyses` has its command without more ado."""
    app = new_app("moescope", HELP)
    app.help_epilogue = EPILOGUE
    app.command(info, group=LOOK, help_epilogue="")
    app.command(report, group=EVERYTHING, help_epilogue="")
    for name, entry in analyses.entries().items():
        command = OWN_COMMANDS.get(name) or _question(name, entry.summary)
        app.command(command, name=name, group=QUESTIONS[entry.about], help_epilogue="")
    app.command(ablate, group=QUESTIONS["causes"], help_epilogue="")
    app.command(intervene, group=QUESTIONS["causes"], help_epilogue="")
    app.command(saturation, group=TRAINING_RUN, help_epilogue="")
    return app


def new_app(name: str, text: str) -> App:
    """An application that speaks our way: plain text, keyword options, no invented negative flags."""
    app = App(
        name=name,
        help=text,
        help_format="markdown",
        version=moescope.__version__,
        default_parameter=Parameter(negative_iterable=()),
        # Ctrl-C is handled where all errors are.
        suppress_keyboard_interrupt=False,
    )
    for flag in ("--help", "--version"):
        app[flag].group = (OTHER,)
    return app


def _question(name: str, summary: str) -> Callable[..., None]:
    def command(*, options: CaptureOptions | None = None) -> None:
        run_analyses([name], options or CaptureOptions(), command=name)

    command.__name__ = name
    command.__doc__ = f"{summary}\n\n{explanation([name])}"
    return command


def explanation(names: list[str]) -> str:
    """What the commands of these analyses write, and what their numbers mean, for a help page."""
    lines = [
        "Runs the text through the model once and writes tables (.csv, .parquet), figures (.pdf, .png), the counts "
        "behind them and a manifest to the folder --out.",
        "A layer has E experts to choose from; its router selects K of them for each token.",
    ]
    for name in names:
        lines += [f"**{term}**: {text}" for term, text in words.definitions(name).items()]
    return "\n\n".join(lines)
