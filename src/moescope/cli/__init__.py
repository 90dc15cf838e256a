"""The command line: `moescope COMMAND`, and the thesis's scripts by their own names.

Nothing heavy is imported here: a help page costs neither torch nor matplotlib.
"""

from __future__ import annotations


def main() -> int:
    """Entry point of `moescope`; returns the exit code."""
    from moescope.cli.app import build
    from moescope.cli.failures import launch

    return launch(build())
