"""Each command as an application of its own, made when it is called: `moescope --help` imports none of them."""

from __future__ import annotations

import importlib

from cyclopts import App

from moescope.analyses import registry
from moescope.cli.app import OWN_MODULES, new_app
from moescope.cli.questions import question


class Command(App):
    """An application whose help page keeps its function's docstring, where cyclopts puts the line of the overview."""

    @property
    def help(self) -> str:
        """The function's docstring."""
        return self.default_command.__doc__ or "" if self.default_command is not None else ""

    @help.setter
    def help(self, value: str | None) -> None:
        """Keeps the docstring."""


def __getattr__(name: str) -> App:
    """The command of that name (PEP 562)."""
    if name in OWN_MODULES:
        module = importlib.import_module(f"moescope.cli.{name}")
        command, inner = getattr(module, name), getattr(module, "SUBCOMMANDS", {})
    elif name in registry.names():
        command, inner = question(registry.entry(name)), {}
    else:
        raise AttributeError(name)
    app = new_app(name, None, kind=Command)
    app.default(command)
    for inner_name, function in inner.items():
        app.command(function, name=inner_name)
    return app
