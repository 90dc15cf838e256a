"""Router saturation of all checkpoints as one dataset, and as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    import pandas as pd

    from moescope.statistics.saturation import RouterSaturation


def table_of(statistics: Mapping[str, RouterSaturation], shares: Sequence[float] | None) -> xr.Dataset:
    """By `checkpoint, layer`: the variables of `RouterSaturation.compute`; coordinate `share` of training, percent."""
    names = list(statistics)
    table = xr.concat([statistic.compute() for statistic in statistics.values()], xr.Variable("checkpoint", names))
    share_C = np.full(len(names), np.nan) if shares is None else np.asarray(shares, dtype=np.float64)
    return table.assign_coords(share=("checkpoint", share_C, {"units": "%", "definition": "share of training"}))


def frame_of(table: xr.Dataset) -> pd.DataFrame:
    """One row per checkpoint and layer."""
    names = ["num_tokens", *(name for name in table.data_vars if name != "num_tokens")]
    frame = table[names].to_dataframe(dim_order=["checkpoint", "layer"]).reset_index()
    frame = frame.rename(columns={"share": "share_of_training_percent"})
    return frame[["checkpoint", "share_of_training_percent", "layer", *names]]
