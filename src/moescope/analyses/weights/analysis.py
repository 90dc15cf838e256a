"""Expert weights: how alike experts are in what they are, and how many directions each uses; needs no text.

Weights say what an expert could do with any input; what it does with those it gets is a question for its outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.analyses.weights.matching import JOINED, Neurons, cosines_of_rows, effective_rank
from moescope.errors import MoescopeWarning, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from moescope.statistics.base import Statistic

TOP_PAIRS = 20
CONTROL_EXPERTS = 8
MOST_WORK = 1e12
"""Multiplications and additions that matching may take in a layer before it goes by a sample of pairs: about half a
minute of one core."""

ROUTER = "router"
CENTRED = "router_centred"
MATRICES = {
    "gate": "gate matrices",
    "up": "up matrices",
    "down": "down matrices",
    JOINED: "gate, up and down matrices joined",
    ROUTER: "router rows",
    CENTRED: "router rows less their mean, which a softmax does not see",
}
_QUANTILES = {"quantile_05": 0.05, "median": 0.5, "quantile_95": 0.95}


@dataclass(frozen=True)
class Weights(Analysis):
    """Cosines of weights, as they are stored and with neurons matched; effective ranks and spectra.

    Attributes:
        pairs: Pairs of experts whose neurons are matched in each layer; None: all where that takes no longer than half
            a minute or so, else a random sample of as many.
    """

    name: ClassVar[str] = "weights"
    summary: ClassVar[str] = (
        "Expert weights: how alike experts are in what they are, and how many directions each uses."
    )
    about: ClassVar[str] = "experts"
    min_domains: ClassVar[int] = 0
    needs_text: ClassVar[bool] = False

    pairs: int | None = None

    def check(self, context: Context) -> None:
        """Refuses a negative number of pairs.

        Raises:
            UsageError: That.
        """
        if self.pairs is not None and self.pairs < 0:
            raise UsageError(f"--pairs {self.pairs}", expected="0 (match none) or more")

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """None."""
        return {}

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By layer, with X one of gate, up, down and joined, or router and router_centred.

        By `layer, expert, other_expert`: X_cosine; X_matched_cosine of matrices, NaN where a pair was not matched. By
        `layer, expert`: X_norm; X_effective_rank of matrices. By `layer, component`: X_singular_value, the mean over
        experts, with `_low` and `_high`. The same with `_redrawn`, of matrices for a few experts or pairs of them only
        (`control_expert`, `control_pair`). By `layer`: num_pairs_matched. A family without gates has no gate, one
        whose router is no linear map no router.
        """
        return context.once(f"{self}", lambda: self._table(context))

    def _table(self, context: Context) -> xr.Dataset:
        model, seed = context.model, context.seed
        chosen = self._num_pairs(context)
        all_pairs = model.num_experts * (model.num_experts - 1) // 2
        if chosen < all_pairs and self.pairs is None:
            warnings.warn(
                f"neurons are matched in a random sample of {chosen:,} of the {all_pairs:,} pairs of experts of each "
                "layer, since all would take long; --pairs says how many",
                MoescopeWarning,
                stacklevel=2,
            )
        layers = []
        for layer in context.layers:
            weights = model.expert_weights(layer)
            neurons = Neurons.of(weights)
            router_EM = None if weights.router_EM is None else weights.router_EM.float()
            layers.append(_layer(neurons, router_EM, chosen, seed=seed + 1_000_003 * layer))
        experts = np.arange(model.num_experts)
        table = xr.concat(layers, xr.Variable("layer", list(context.layers)))
        return table.assign_coords(expert=experts, other_expert=experts)

    def _num_pairs(self, context: Context) -> int:
        model = context.model
        most = model.num_experts * (model.num_experts - 1) // 2
        work = 6 * model.model_width * model.expert_width**2  # three products of F x M by M x F
        return min(most, int(MOST_WORK // work) if self.pairs is None else self.pairs)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`weights`: a row per layer, matrix and measure; `weights_experts` and `weights_pairs`, the most alike."""
        i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
        summaries, experts, pairs = [], [], []
        by_expert = [str(name) for name, values in table.data_vars.items() if values.dims == ("layer", "expert")]
        by_pair = [
            str(name)
            for name, values in table.data_vars.items()
            if "other_expert" in values.dims and not str(name).endswith("_redrawn")
        ]
        for layer in table["layer"].values.tolist():
            at = table.sel(layer=layer)
            known = {"num_pairs": len(i_P), "num_pairs_matched": int(at["num_pairs_matched"])}
            for matrix in MATRICES:
                for measure in ("cosine", "matched_cosine", "effective_rank"):
                    name = f"{matrix}_{measure}"
                    if name not in at:
                        continue
                    own, redrawn = (
                        _spread(values.values[i_P, j_P] if "other_expert" in values.dims else values.values)
                        for values in (at[name], at[f"{name}_redrawn"])
                    )
                    row = {"layer": layer, "matrix": matrix, "measure": measure, **known, **own}
                    summaries.append(row | {f"{key}_redrawn": value for key, value in redrawn.items()})
            columns = {name: at[name].values for name in by_expert}
            experts.append(pd.DataFrame({"layer": layer, "expert": at["expert"].values, **columns}))
            values_P = at[leading(at)].values[i_P, j_P]
            for place, pair in enumerate(np.argsort(-np.nan_to_num(values_P, nan=-np.inf), kind="stable")[:TOP_PAIRS]):
                i, j = int(i_P[pair]), int(j_P[pair])
                row = {"layer": layer, "place": place, "expert": i, "other_expert": j}
                pairs.append(row | {name: at[name].values[i, j].item() for name in by_pair})
        return {
            "weights": pd.DataFrame(summaries),
            "weights_experts": pd.concat(experts, ignore_index=True),
            "weights_pairs": pd.DataFrame(pairs),
        }

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, NDArray]]:
        """`weights`: every number of the table: pairs as (layer, expert, other expert), spectra (layer, component)."""
        numbers = {str(name): values.values for name, values in table.data_vars.items()}
        return {"weights": {"layers": table["layer"].values, **numbers}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Cosines over layers; heat maps with a dendrogram; singular spectra; effective ranks."""
        from moescope.analyses.weights import figures as weights_figures

        yield from weights_figures.draw(table, context)


def leading(table: xr.Dataset) -> str:
    """The measure that pairs are ordered by: with neurons matched if any are."""
    matched = f"{JOINED}_matched_cosine"
    return matched if (table["num_pairs_matched"].values > 0).all() else f"{JOINED}_cosine"


def _layer(neurons: Neurons, router_EM: Tensor | None, num_pairs: int, *, seed: int) -> xr.Dataset:
    """One layer's numbers."""
    num_experts = neurons.num_experts
    generator = np.random.default_rng(seed)
    every_P2 = np.stack(np.triu_indices(num_experts, 1), axis=1)
    sample = np.sort(generator.choice(len(every_P2), num_pairs, replace=False))
    control = np.sort(generator.choice(num_experts, min(CONTROL_EXPERTS, num_experts), replace=False))
    redrawn = neurons.redrawn(control.tolist(), seed=seed)
    control_P2 = np.stack(np.triu_indices(len(control), 1), axis=1)
    first_P, second_P = control_P2.T
    # As long as all are matched, so are all controls; else a control for every four pairs.
    num_controls = len(control_P2)
    if num_pairs < len(every_P2):
        num_controls = min(num_controls, -(-num_pairs // 4))
    pairwise, control_pair = ("expert", "other_expert"), ("control_pair",)
    made: dict[str, tuple[tuple[str, ...], NDArray, dict[str, str]]] = {}

    def add(name: str, dims: tuple[str, ...], values: NDArray, units: str, definition: str) -> None:
        made[name] = dims, values, {"units": units, "definition": definition}

    drawn = "; of experts whose neurons have the same lengths and random directions"
    cosines, control_cosines = neurons.cosines(), redrawn.cosines()
    matched, control_matched = (
        neurons.matched_cosines(every_P2[sample]),
        redrawn.matched_cosines(control_P2[:num_controls]),
    )
    for name in cosines:
        words = f"cosine of two experts' {MATRICES[name]}"
        add(f"{name}_cosine", pairwise, cosines[name].cpu().numpy(), "cosine", f"{words}, as stored")
        values_P = control_cosines[name].cpu().numpy()[first_P, second_P]
        add(f"{name}_cosine_redrawn", control_pair, values_P, "cosine", f"{words}, as stored{drawn}")
        words += ", neurons matched so that the cosine of all matrices joined is largest"
        matrix_EE = np.full((num_experts, num_experts), np.nan, dtype=np.float32)
        i_P, j_P = every_P2[sample].T
        matrix_EE[i_P, j_P] = matrix_EE[j_P, i_P] = matched[name]
        np.fill_diagonal(matrix_EE, 1.0)
        add(f"{name}_matched_cosine", pairwise, matrix_EE, "cosine", words)
        values_P = np.full(len(control_P2), np.nan)
        values_P[:num_controls] = control_matched[name]
        add(f"{name}_matched_cosine_redrawn", control_pair, values_P, "cosine", words + drawn)
    for name, norms_E in neurons.norms().items():
        add(f"{name}_norm", ("expert",), norms_E.cpu().numpy(), "1", f"Frobenius norm of an expert's {MATRICES[name]}")
    control_spectra = redrawn.spectra()
    for name, values_EC in neurons.spectra().items():
        words = f"exp of the entropy of the shares of energy of singular values of {MATRICES[name]}"
        add(f"{name}_effective_rank", ("expert",), effective_rank(values_EC), "directions", words)
        values = effective_rank(control_spectra[name])
        add(f"{name}_effective_rank_redrawn", ("control_expert",), values, "directions", words + drawn)
        words = f"singular values of {MATRICES[name]} over their root mean square, descending"
        relative_EC, control_EC = _relative(values_EC), _relative(control_spectra[name])
        own = {"": relative_EC.mean(0), "_redrawn": control_EC.mean(0)}
        own |= dict(zip(("_low", "_high"), np.quantile(relative_EC, (0.05, 0.95), axis=0), strict=True))
        kinds = {"": "mean over experts", "_redrawn": f"mean{drawn}", "_low": "5 % of experts", "_high": "95 %"}
        for suffix, values in own.items():
            add(f"{name}_singular_value{suffix}", ("component",), values, "1", f"{words}; {kinds[suffix]}")
    if router_EM is not None:
        noise_EM = torch.randn(router_EM.shape, generator=torch.Generator().manual_seed(seed + 1)).to(router_EM.device)
        random_EM = noise_EM * (router_EM.norm(dim=1) / noise_EM.norm(dim=1)).unsqueeze(1)
        shown = {
            ROUTER: (router_EM, random_EM),
            CENTRED: (router_EM - router_EM.mean(0), random_EM - random_EM.mean(0)),
        }
        for name, (rows_EM, control_EM) in shown.items():
            words = f"cosine of two experts' {MATRICES[name]}"
            add(f"{name}_cosine", pairwise, cosines_of_rows(rows_EM).cpu().numpy(), "cosine", words)
            values_EE = cosines_of_rows(control_EM).cpu().numpy()
            add(f"{name}_cosine_redrawn", pairwise, values_EE, "cosine", f"{words}; of rows of random direction")
        add("router_norm", ("expert",), router_EM.norm(dim=1).cpu().numpy(), "1", "norm of an expert's router row")
    add("num_pairs_matched", (), np.array(num_pairs), "pairs", "pairs of experts whose neurons were matched")
    return xr.Dataset(made)


def _relative(values_EC: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return values_EC / np.sqrt((values_EC**2).mean(-1, keepdims=True))


def _spread(values: NDArray) -> dict[str, float]:
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return dict.fromkeys(("mean", *_QUANTILES), np.nan)
    found = np.quantile(known, list(_QUANTILES.values())).tolist()
    return {"mean": float(known.mean()), **dict(zip(_QUANTILES, found, strict=True))}
