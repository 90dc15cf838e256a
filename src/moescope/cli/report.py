"""`moescope report`: every question in one pass, and a page about the results."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from moescope.cli.capture import print_summary, run_analyses
from moescope.cli.options import TracedOptions
from moescope.cli.terminal import quiet, working
from moescope.errors import UsageError

REPORT = Group("Report", sort_key=-1)


def report(
    *,
    options: TracedOptions | None = None,
    analyses: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), group=REPORT)] = None,
    skip: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), group=REPORT)] = None,
    existing: Annotated[Path | None, Parameter(name="--from", group=REPORT)] = None,
    single_file: Annotated[bool, Parameter(negative="", group=REPORT)] = False,
) -> None:
    """Answer every question in one pass and write a page about it.

    Runs the text through the model once, writes the tables, figures and manifest of all analyses, and index.html: a
    page for the browser with the findings first; it needs no network, shows the folder's figures and links to its
    tables. With the defaults, three to four minutes on two cores.

    Args:
        options: Which model, text, layers, folder.
        analyses: Only these parts, by the names of their commands. Default: all.
        skip: All parts but these, as in --skip atlas map.
        existing: Run nothing; write (or rewrite) the page of this results folder.
        single_file: Write report.html too: the page with all figures inside, one file to send or keep.
    """
    options = options or TracedOptions()
    if existing is not None:
        from moescope.results.places import expanded

        existing = expanded(existing)
        if options.out is not None:
            raise UsageError(
                "--from was given with --out", remedy="leave --out out: the page goes into the --from folder"
            )
        with quiet(verbose=options.verbose, downloads=False):
            from moescope.results.checking import refusing

            with refusing(existing):  # the folder may be anyone's
                write_page(existing, single_file=single_file)
                print_summary(existing)
        return
    if analyses and skip:
        raise UsageError("--analyses was given with --skip", remedy="name the parts you want, or those you don't")
    run_analyses(
        analyses, options, command="report", skip=skip or (), finish=partial(write_page, single_file=single_file)
    )


def write_page(folder: Path, *, single_file: bool = False) -> None:
    """Writes the page of a complete results folder, and the one that stands alone if asked for."""
    with working("writing the page"):
        from moescope.report.page import write

        write(folder, single_file=single_file)
