"""Experts that compute the same, and experts that compute nothing, whatever their weights look like.

Many weights give one function: hidden neurons may be permuted; where the gate multiplies an odd function of up, a
neuron may change sign in up and down together (and in its bias of up); where that function is linear, up may be scaled
by what down is divided by. A change of sign of the gate's row is no symmetry: SiLU(-x) is not -SiLU(x). Comparing what
experts give for the same random inputs needs none of these rules, and finds all of them, in every family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.weights.findings import SAME
from moescope.measures.usage import SILENT, silent
from moescope.models.experts import run_expert
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from torch import Tensor

    from moescope.models import MoEModel

NUM_INPUTS = 8
MOST_NUMBERS = 256
"""Numbers of an output that are compared: two functions that agree in so many are the same."""
DISTANCE = "output_distance"


@torch.no_grad()
def output_table(model: MoEModel, layer: int, *, seed: int) -> xr.Dataset:
    """What a layer's experts give for the same standard normal inputs, computed in float32.

    By `expert`: `random_input_output_norm`, `silent`. By `expert, other_expert`: `output_distance`, NaN where either is
    silent.
    """
    experts = model.experts(layer)
    generator = torch.Generator().manual_seed(seed)
    width = model.expert_weights(layer).up_EFM.shape[2]
    device = experts.down_proj.device
    inputs_NM = torch.randn(NUM_INPUTS, width, generator=generator).to(device)
    norms, compared = [], []
    for expert in range(model.num_experts):
        outputs_NM = run_expert(experts, expert, inputs_NM, torch.float32)
        norms.append(float(outputs_NM.double().norm(dim=1).mean()))
        compared.append(outputs_NM[:, :MOST_NUMBERS].flatten().double())
    norms_E = np.array(norms)
    silent_E = silent(norms_E)
    distance_EE = _distances(torch.stack(compared))
    distance_EE[silent_E] = distance_EE[:, silent_E] = np.nan
    how = f"for {NUM_INPUTS} standard normal inputs, the same for all experts"
    norm_words = f"mean norm of an expert's output {how}"
    silent_words = f"that norm is 0, or at most {SILENT:g} of the layer's median"
    distance_words = f"norm of the difference of two experts' outputs {how}, over the geometric mean of their norms"
    return xr.Dataset(
        {
            "random_input_output_norm": variable("expert", norms_E, "norm of a hidden state", norm_words),
            "silent": variable("expert", silent_E, "bool", silent_words),
            DISTANCE: variable(("expert", "other_expert"), distance_EE, "ratio", distance_words),
        }
    )


def _distances(outputs_EX: Tensor) -> np.ndarray:
    """`|a - b| / sqrt(|a| |b|)` of all pairs, from inner products in float64: exact to about 1e-8."""
    inner_EE = outputs_EX @ outputs_EX.T
    squares_E = inner_EE.diagonal()
    difference_EE = (squares_E[:, None] + squares_E[None] - 2 * inner_EE).clamp_min(0).sqrt()
    distance: np.ndarray = (difference_EE / torch.outer(squares_E, squares_E).sqrt().sqrt()).cpu().numpy()
    return distance


def duplicate_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per pair of duplicates: how far their outputs are apart, and cosines of their weights and router rows."""
    rows = []
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    names = [
        name for name in ("joined_matched_cosine", "joined_cosine", "router_cosine", "router_centered_cosine")
        if name in table
    ]  # fmt: skip
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        distance_EE = at[DISTANCE].values
        for pair in np.flatnonzero(distance_EE[i_P, j_P] <= SAME).tolist():
            i, j = int(i_P[pair]), int(j_P[pair])
            row = {"layer": layer, "expert": i, "other_expert": j, DISTANCE: float(distance_EE[i, j])}
            rows.append(row | {name: at[name].values[i, j].item() for name in names})
    return pd.DataFrame(rows)
