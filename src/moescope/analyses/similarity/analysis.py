"""Similarity: how alike experts are in what they put out, beside what sharing inputs alone would give."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.similarity import expert_runs
from moescope.analyses.similarity import figures as similarity_figures
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.analyses.similarity.comparing import MIN_DOCUMENTS, MINIBATCH, Comparison, compare
from moescope.errors import MoescopeWarning, UsageError
from moescope.measures.cka import MIN_TOKENS
from moescope.statistics.samples.inputs import LayerInputs
from moescope.measures.jackknife import NUM_GROUPS, interval
from moescope.statistics.shared_tokens import SharedTokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

Method = Literal["cka", "cosine"]
Estimator = Literal["minibatch", "exact"]
Mode = Literal["all", "routed"]

NUM_SAMPLES = 2048
"""Tokens every expert is run on, unless more are asked for: eight minibatches."""
TOP_PAIRS = 20
MOST_STATE_BYTES = 512 * 2**20

DEFINITIONS = {
    "cka": "debiased CKA: the unbiased HSIC of two experts' outputs over the root of the product of each one's own",
    "deconfounded_cka": "debiased CKA after the inputs' Gram matrix was regressed out of each expert's",
    "linear_cka": "linear CKA, from the biased HSIC: high for few tokens and wide outputs, whatever they are",
    "cosine": "cosine of two experts' outputs for the same token, mean over tokens",
    "centred_cosine": "the same after each expert's mean output was subtracted",
}


@dataclass(frozen=True)
class Similarity(Analysis):
    """Compares what all experts of a layer put out, before any routing weight.

    Another analysis of the same run that needs the table declares `Similarity().statistics(context)` among its own and
    calls `Similarity().table(statistics, context)`: whoever is first computes it. With `control=False` it costs half.

    Attributes:
        method: The measure that pairs are ranked and drawn by: "cka" (gives the cosines too) or "cosine".
        estimator: "minibatch": terms averaged over minibatches of 256 tokens, in memory that does not grow with the
            sample; "exact": all pairs of tokens, outputs in half precision in a temporary file.
        mode: "all": every expert is run on the same sample of the layer's inputs; "routed": each expert's outputs on
            the tokens it was given, two compared on the tokens they share.
        num_samples: Most tokens that every expert is run on.
        control: Whether the same experts with re-drawn weights are compared too.
        scratch: Folder for the exact estimator's file; None: the system's temporary one.
    """

    name = "similarity"
    summary = "Similarity: how alike experts are in what they put out, beside what sharing inputs alone would give."
    about: ClassVar[str] = "experts"

    method: Method = "cka"
    estimator: Estimator = "minibatch"
    mode: Mode = "all"
    num_samples: int = NUM_SAMPLES
    control: bool = True
    scratch: str | None = None

    def check(self, context: Context) -> None:
        """Refuses CKA of routed tokens, and of fewer than 4."""
        if self.method == "cka" and self.mode == "routed":
            raise UsageError(
                "CKA compares experts on the same tokens, and in routed mode each has its own",
                remedy="use --mode all, or --method cosine",
            )
        self._check_size(min(context.num_tokens, self.num_samples))

    def _check_size(self, num_tokens: int) -> None:
        needed = MIN_TOKENS if self.method == "cka" else 1
        if num_tokens < needed:
            raise UsageError(
                f"{self.method} of {num_tokens} token{'' if num_tokens == 1 else 's'}",
                expected=f"{needed} or more, to run every expert on",
                remedy="raise --num-tokens, and --num-samples if you set it",
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of the layers' inputs; in routed mode, sums over the tokens that experts share."""
        layers, model = list(context.layers), context.model
        if self.mode == "routed":
            size = 16 * NUM_GROUPS * len(layers) * model.num_experts**2
            return {
                self._key: SharedTokens(
                    layers=layers,
                    num_experts=model.num_experts,
                    num_experts_per_token=model.num_experts_per_token,
                    num_groups=NUM_GROUPS if size <= MOST_STATE_BYTES else 1,
                    seed=context.seed,
                    device=model.device,
                )
            }
        return {
            self._key: LayerInputs(
                layers=layers,
                model_width=model.model_width,
                num_samples=min(context.num_tokens, self.num_samples),
                dtype=str(model.dtype).removeprefix("torch."),
                seed=context.seed,
                device=model.device,
            )
        }

    @property
    def _key(self) -> str:
        # Runs may hold samples of different sizes; those of one size are shared.
        return "shared_tokens" if self.mode == "routed" else f"layer_inputs_{self.num_samples}"

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, expert, other_expert`, each measure with `_low`, `_high` and `_redrawn` (the control).

        Measures are those of `DEFINITIONS` (without CKA for `method="cosine"`); in routed mode `cosine`, and
        `num_shared`. By `layer`: the sample's `num_tokens`, `num_samples`, `num_documents`.

        Raises:
            UsageError: The corpus gave fewer than 4 tokens, and CKA was asked for.
        """
        statistic = statistics[self._key]
        if self.mode == "routed":
            return context.once("similarity/routed", lambda: self._warned(statistic.compute()))
        assert isinstance(statistic, LayerInputs)
        table = context.once(self._once("own"), lambda: self._warned(self._own(statistic, context)))
        if not self.control:
            return table
        return table.merge(context.once(self._once("redrawn"), lambda: self._redrawn(statistic, context)))

    def _once(self, part: str) -> str:
        return f"similarity/{self.method}/{self.estimator}/{self.num_samples}/{part}"

    def _own(self, inputs: LayerInputs, context: Context) -> xr.Dataset:
        layers = []
        for layer in inputs.layers:
            run = expert_runs.trained(context.model, layer)
            compared = self._compare(run, inputs, layer)
            how = _how(self.estimator, compared)
            reach = f"95 % interval, delete-one jackknife over {int(compared.present_G.sum())} hash groups of documents"
            variables = {}
            for name, (whole_EE, without_GEE) in compared.measures.items():
                low_EE, high_EE = interval(whole_EE, without_GEE, compared.present_G)
                variables[name] = _pairs(whole_EE.numpy(), name, f"{DEFINITIONS[name]}; {how}")
                variables[f"{name}_low"] = _pairs(low_EE.numpy(), name, f"lower end, {reach}")
                variables[f"{name}_high"] = _pairs(high_EE.numpy(), name, f"upper end, {reach}")
            layers.append(xr.Dataset(variables))
        return xr.merge([inputs.compute(), _stacked(layers, inputs, context)])

    def _redrawn(self, inputs: LayerInputs, context: Context) -> xr.Dataset:
        layers = []
        for layer in inputs.layers:
            run = expert_runs.redrawn(context.model, layer, seed=inputs.seed)
            compared = self._compare(run, inputs, layer, intervals=False)
            words = f"{_how(self.estimator, compared)}; experts with re-drawn weights of equal scale"
            layers.append(
                xr.Dataset(
                    {
                        f"{name}_redrawn": _pairs(whole_EE.numpy(), name, f"{DEFINITIONS[name]}; {words}")
                        for name, (whole_EE, _) in compared.measures.items()
                    }
                )
            )
        return _stacked(layers, inputs, context)

    def _compare(self, run: expert_runs.Run, inputs: LayerInputs, layer: int, *, intervals: bool = True) -> Comparison:
        sample = inputs.sample(layer)
        self._check_size(sample.inputs_NM.shape[0])
        return compare(
            run,
            sample,
            cka=self.method == "cka",
            exact=self.estimator == "exact",
            seed=inputs.seed,
            intervals=intervals,
            scratch=self.scratch,
        )

    def _warned(self, table: xr.Dataset) -> xr.Dataset:
        for text in gaps(table, self.method):
            warnings.warn(text, MoescopeWarning, stacklevel=2)
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`similarity`: a row per layer and measure. `similarity_pairs`: each layer's most alike pairs."""
        summaries, pairs = [], []
        i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
        for layer in table["layer"].values.tolist():
            at = table.sel(layer=layer)
            sizes = {name: int(at[name]) for name in ("num_samples", "num_documents") if name in at}
            for measure in measures(table, self.method):
                values_P = at[measure].values[i_P, j_P]
                known_P = np.isfinite(values_P)
                row = {"layer": layer, "measure": measure, "mode": self.mode, "num_tokens": int(at["num_tokens"])}
                row |= sizes | {"num_pairs": int(known_P.sum()), "num_gaps": int((~known_P).sum())}
                row |= _spread(values_P[known_P])
                if f"{measure}_redrawn" in at:
                    control_P = at[f"{measure}_redrawn"].values[i_P, j_P]
                    row |= {f"{k}_redrawn": v for k, v in _spread(control_P[np.isfinite(control_P)]).items()}
                    low_P = at[f"{measure}_low"].values[i_P, j_P]
                    above_P = low_P[np.isfinite(low_P)] > row["quantile_95_redrawn"]
                    row["share_above_redrawn"] = float(above_P.mean()) if above_P.size else np.nan
                summaries.append(row)
            main_P = at[self.method].values[i_P, j_P]
            order = np.argsort(np.where(np.isfinite(main_P), -main_P, np.inf), kind="stable")
            for place, pair in enumerate(order[: min(TOP_PAIRS, int(np.isfinite(main_P).sum()))]):
                i, j = int(i_P[pair]), int(j_P[pair])
                row = {"layer": layer, "place": place, "expert": i, "other_expert": j}
                row |= {str(name): variable.values[i, j].item() for name, variable in _pairwise(at).items()}
                pairs.append(row)
        return {"similarity": pd.DataFrame(summaries), "similarity_pairs": pd.DataFrame(pairs)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`similarity`: every number of the table, pairs as (layer, expert, other expert); reals in float32."""
        numbers = {str(name): variable.values for name, variable in table.data_vars.items()}
        numbers = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in numbers.items()}
        return {"similarity": {"layers": table["layer"].values, **numbers}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Over layers the spread of pairs and a small heat map each; large ones of chosen layers, beside controls."""
        yield from similarity_figures.draw(table, context, measures(table, self.method), self.mode)


def measures(table: xr.Dataset, first: str) -> list[str]:
    """The measures of a table, the one asked for first."""
    return [first, *(name for name in DEFINITIONS if name in table and name != first)]


def gaps(table: xr.Dataset, measure: str) -> list[str]:
    """What has no number in a table of similarities, and why, a sentence for each kind."""
    found = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        own_E = np.diagonal(at[measure].values)
        if not np.isfinite(own_E).all():
            experts = np.flatnonzero(~np.isfinite(own_E)).tolist()
            why = "saw no token" if "num_shared" in at else "put out the same for every token"
            found.append(f"layer {layer}: {_listed(experts)} {why}: a gap in tables and figures")
        if "num_shared" in at:
            known = np.isfinite(own_E)
            i_P, j_P = np.triu_indices(len(own_E), 1)
            without = int((known[i_P] & known[j_P] & (at["num_shared"].values[i_P, j_P] == 0)).sum())
            if without:
                found.append(f"layer {layer}: {without:,} pairs of experts share no token: gaps")
    few = [layer for layer, count in _documents(table) if count < MIN_DOCUMENTS]
    if few:
        where = "no intervals" if len(few) == table.sizes["layer"] else f"no intervals at layers {few}"
        number = dict(_documents(table))[few[0]]
        found.append(f"{where}: the sample is from {number} documents of {MIN_DOCUMENTS} needed")
    return found


def _documents(table: xr.Dataset) -> list[tuple[int, int]]:
    if "num_documents" not in table:
        return []
    return list(zip(table["layer"].values.tolist(), table["num_documents"].values.tolist(), strict=True))


def _stacked(layers: list[xr.Dataset], inputs: LayerInputs, context: Context) -> xr.Dataset:
    experts = np.arange(context.model.num_experts)
    table = cast("xr.Dataset", xr.concat(layers, xr.Variable("layer", inputs.layers)))
    return table.assign_coords(expert=experts, other_expert=experts)


def _pairs(values_EE: np.ndarray, measure: str, definition: str) -> xr.Variable:
    attrs = {"units": "cosine" if "cosine" in measure else "CKA", "definition": definition}
    return xr.Variable(("expert", "other_expert"), values_EE, attrs)


def _how(estimator: str, compared: Comparison) -> str:
    if estimator == "exact":
        return "all pairs of tokens"
    return f"terms averaged over {compared.num_minibatches} minibatches of about {MINIBATCH} tokens"


def _listed(experts: list[int]) -> str:
    shown = ", ".join(map(str, experts[:12])) + (f" and {len(experts) - 12} more" if len(experts) > 12 else "")
    return f"expert{'s' if len(experts) > 1 else ''} {shown}"


def _pairwise(at: xr.Dataset) -> dict[str, xr.DataArray]:
    return {str(name): variable for name, variable in at.data_vars.items() if "other_expert" in variable.dims}


def _spread(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return dict.fromkeys(("mean", "quantile_05", "median", "quantile_95"), np.nan)
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"mean": float(values.mean()), "quantile_05": low, "median": middle, "quantile_95": high}
