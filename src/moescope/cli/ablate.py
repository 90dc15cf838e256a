"""`moescope ablate`: the loss of each domain with and without some experts of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.cli.comparisons import comparison
from moescope.cli.options import WholeDepthOptions
from moescope.cli.terminal import show

if TYPE_CHECKING:
    from moescope.analyses.ablation.analysis import AblationRun

MOST_ROWS = 30


def _show(run: AblationRun) -> None:
    """Each domain's Δ loss, the largest first."""
    from rich.table import Table

    frame = run.frames["ablate"]
    title = f"Without {run.description}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("domain")
    for head in ("tokens", "selected by", "Δ loss (nats/token)", "95 % interval", "control", "bits/byte", "without"):
        table.add_column(head, justify="right")
    known = frame[frame["num_tokens"] > 0]
    order = known.iloc[1:].sort_values("delta_loss", ascending=False, kind="stable")
    for row in [*known.iloc[:1].to_dict("records"), *order.head(MOST_ROWS).to_dict("records")]:
        has_interval = row["ci_low"] == row["ci_low"]
        table.add_row(
            str(row["domain"]),
            f"{row['num_tokens']:,}",
            f"{100 * row['num_selected'] / row['num_tokens']:.1f} %",
            f"{row['delta_loss']:+.4f}",
            f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}" if has_interval else "too few documents",
            f"{row['delta_loss_control']:+.4f}" if row["num_controls"] else "none",
            f"{row['bits_per_byte']:.3f}",
            f"{row['bits_per_byte_ablated']:.3f}",
        )
    show(table)


ablate = comparison("ablate", WholeDepthOptions, _show)
