"""`moescope saturation`: agreement of training checkpoints' routing with the final model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.cli.comparisons import comparison
from moescope.cli.options import CompareOptions
from moescope.cli.terminal import show

if TYPE_CHECKING:
    from moescope.analyses.saturation.analysis import SaturationRun


def _show(run: SaturationRun) -> None:
    """Saturation of each checkpoint, mean over layers."""
    from rich.table import Table

    table = Table(title="Router saturation, mean over layers", title_justify="left", title_style="bold", box=None)
    table.add_column("checkpoint")
    columns = {
        f"{ranks}_saturation{suffix}": f"{name} {kind}".strip()
        for ranks, name in (("topk", "top-K"), ("top1", "top-1"))
        for suffix, kind in (("", ""), ("_independent", "independent"), ("_chance", "chance"))
    }
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, rows in run.frames["saturation"].groupby("checkpoint", sort=False):
        table.add_row(str(name), *(f"{100 * rows[column].mean():.1f} %" for column in columns))
    show(table)


saturation = comparison("saturation", CompareOptions, _show, num_passes=lambda own: len(own.checkpoints))
