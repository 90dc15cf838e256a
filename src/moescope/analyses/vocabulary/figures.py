"""Figure of vocabulary specialization: by layer and reading, beside independent routing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.analyses.vocabulary.findings import READING_NAMES
from moescope.figures import caption, style
from moescope.figures.experts import against_independent, shared_legend

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.context import Context


def specialization(table: xr.Dataset, context: Context) -> Figure:
    """Specialization per layer, a line per reading, beside independent routing; a panel for each kind of ranks."""
    kinds, readings = table["ranks"].values.tolist(), table["reading"].values.tolist()
    fig, axes = style.figure("page" if len(kinds) > 1 else "column", 2.5, 1, len(kinds), squeeze=False)
    for ax, ranks in zip(axes[0], kinds, strict=True):
        at = table.sel(ranks=ranks)
        measured, independent = (
            {READING_NAMES[r]: at[f"vocabulary_specialization{suffix}"].sel(reading=r).values for r in readings}
            for suffix in ("", "_chance")
        )
        counted = (
            f"all {context.model.num_experts_per_token} selected experts" if ranks == "top-K" else "first rank only"
        )
        against_independent(
            ax,
            table["layer"].values,
            measured,
            independent,
            title=f"{ranks}: {counted}",
            legend=False,
            ylabel="specialization (share)" if ax is axes[0][0] else None,
        )
        ax.set_ylim(0, 1.02)
    shared_legend(fig, [READING_NAMES[reading] for reading in readings])
    left_out = "" if context.predictions else "; predicted tokens not computed (the model was not run to its end)"
    caption(
        fig,
        context.caption,
        "mean over token types seen at least "
        f"{table.attrs['min_count']} times of the largest share that one expert gets{left_out}",
    )
    return fig
