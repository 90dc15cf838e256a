"""Where every error of the command line ends: one plain message, with a remedy and the right exit code.

0: done. 1: the surroundings failed (disk, network, memory), or moescope did. 2: input that cannot be used.
130: stopped.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError

from moescope.cli.terminal import as_flags, print_error, print_traceback, use_flags
from moescope.errors import EnvironmentFailure, MoescopeError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = 2
STOPPED = 130
TERMINATED = 143

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas of this kind


def launch(app: App, arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    What moescope raises on purpose, and what a machine can run out of, is printed without a traceback; anything else
    is a mistake of ours and keeps its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A scheduler's polite end is an end like Ctrl-C: the results folder of an unfinished pass is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.excepthook = print_traceback
    if not {"--help", "-h", "--version"} & set(words):
        use_flags(_flags(app, words))
    try:
        app(words, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
    except CycloptsError as error:
        command = " ".join([app.name[0], *(error.command_chain or ())])
        print_error("error", f"{error}\nWhat to do: {command} --help lists what there is")
        return USAGE
    except KeyboardInterrupt as stop:
        print_error("stopped", "; ".join(getattr(stop, "__notes__", ["nothing was written"])))
        return STOPPED
    except BrokenPipeError:
        # Who reads has closed, as in `moescope info | head`; the interpreter must not try to flush to them again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        known = _recognized(error)
        if known is None:
            raise
        print_error("error", as_flags(str(known)))
        return known.exit_code
    return 0


def _flags(app: App, words: Sequence[str]) -> dict[str, str]:
    """The flags of the command that these words call, by parameter name."""
    try:
        _, apps, _ = app.parse_commands(words)
    except CycloptsError:  # it is reported when the command is run
        return {}
    if apps[-1].default_command is None:  # no command was named
        return {}
    found: dict[str, str] = {}
    for argument in apps[-1].assemble_argument_collection(parse_docstring=False):
        for name in argument.names:
            if name.startswith("--"):
                found.setdefault(name.removeprefix("--").replace("-", "_"), name)
    return found


def _recognized(error: Exception) -> MoescopeError | None:
    """The error as one of ours, with a remedy; None where it is not one of the surroundings'."""
    if isinstance(error, MoescopeError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return EnvironmentFailure(
            f"no space left on the disk{_of(error)}",
            remedy="free some, or name another place with --out (results) or HF_HOME (downloaded models)",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentFailure(
            f"no permission{_of(error)}: {error.strerror}", remedy="name a folder you may write to with --out"
        )
    if _is_out_of_memory(error):
        return EnvironmentFailure(
            f"out of memory: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            remedy="try fewer --batch-tokens, fewer --layers, or --dtype bfloat16; on a CPU with less memory than the "
            "model takes, `moescope info --layers ...` says what a few layers need",
        )
    return None


def _of(error: OSError) -> str:
    return f" for {error.filename}" if error.filename else ""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch's own kinds are told by name and message, so that torch need not be imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
