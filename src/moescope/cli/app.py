"""The `moescope` command: info, one command per analysis, and report."""

from __future__ import annotations

from cyclopts import App, Group, Parameter

import moescope
from moescope.analyses import registry

MODEL = Group.create_ordered("Model")
REPORT = Group.create_ordered("Report")
TRACE = Group.create_ordered("Traces")
QUESTIONS = {
    "routing": Group.create_ordered("Routing"),
    "experts": Group.create_ordered("Experts"),
    "causes": Group.create_ordered("Causal effects"),
    "checkpoints": Group.create_ordered("Training checkpoints"),
}
GLOBAL = Group.create_ordered("Global options")

OWN_MODULES = ("info", "report", "trace", "profile", "ablate", "saturation", "intervene")
"""Commands that are more than a question's options; each has a file of its name beside this one."""

HELP = """Look into a Mixture-of-Experts language model: how its router decides, what each expert does, whether experts
specialize.

Everything works offline with the model and the text that ship with moescope; --model and --corpus name others."""

EPILOGUE = """Examples:

- moescope report: all questions in one pass; tables, figures and a page for the browser
- moescope usage --layers 1 7 15: one question, three layers
- moescope info --model allenai/OLMoE-1B-7B-0924: another model
- moescope COMMAND --help: what a command does, its options, units and defaults"""


def build() -> App:
    """The application with all its commands, each imported when it is run: `moescope --help` reads none of them."""
    app = new_app("moescope", HELP)
    app.help_epilogue = EPILOGUE
    commands = [
        ("info", "Show a model's architecture and router.", MODEL),
        ("report", "Answer every question in one pass and write a page about it.", REPORT),
        ("trace", "Record the experts selected for every token, or import such recordings of other engines.", TRACE),
        *((entry.name, entry.summary, QUESTIONS[entry.group]) for entry in registry.entries()),
        *((entry.name, entry.summary, QUESTIONS[entry.group]) for entry in registry.entries("comparison")),
    ]
    for name, summary, group in commands:
        app.command(f"moescope.cli.commands:{name}", name=name, help=summary, group=group)
    return app


def new_app(name: str, text: str | None, *, kind: type[App] = App) -> App:
    """An application with our conventions: plain text, keyword options, no invented negative flags.

    Args:
        name: The command.
        text: Its help; None: the docstring of the function that it runs.
        kind: Class of the application.
    """
    app = kind(
        name=name,
        help=text,
        help_format="markdown",
        version=moescope.__version__,
        default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
        # Ctrl-C is handled where all errors are.
        suppress_keyboard_interrupt=False,
        help_epilogue="",
    )
    for flag in ("--help", "--version"):
        app[flag].group = (GLOBAL,)
    return app
