"""Expert similarity: how alike two experts' outputs are, on the same tokens or on those routed to both.

It has options and runs every expert on a sample once the pass is over: a function of its own, not one of the analyses
that any pass can feed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses import expert_runs, similarity_figures
from moescope.analyses.base import Context
from moescope.analyses.comparing import MIN_DOCUMENTS, MINIBATCH, Comparison, compare
from moescope.corpora import Sampler
from moescope.errors import MoescopeWarning, UsageError
from moescope.one_pass import feed
from moescope.statistics.cka import MIN_TOKENS
from moescope.statistics.inputs_sample import LayerInputs
from moescope.statistics.jackknife import NUM_GROUPS, interval
from moescope.statistics.shared_tokens import SharedTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

Method = Literal["cka", "cosine"]
Estimator = Literal["minibatch", "exact"]
Mode = Literal["all", "routed"]

NUM_SAMPLES = 10_000
TOP_PAIRS = 20
MOST_STATE_BYTES = 512 * 2**20

DEFINITIONS = {
    "cka": "debiased CKA: the unbiased HSIC of two experts' outputs over the root of the product of each one's own",
    "deconfounded_cka": "debiased CKA after the inputs' Gram matrix was regressed out of each expert's",
    "linear_cka": "linear CKA, from the biased HSIC: high for few tokens and wide outputs, whatever they are",
    "cosine": "cosine of two experts' outputs for the same token, mean over tokens",
    "centred_cosine": "the same after each expert's mean output was subtracted",
}


@dataclass
class SimilarityRun:
    """How alike a model's experts are.

    Attributes:
        table: By `layer, expert, other_expert`: each measure of `DEFINITIONS` that was asked for with `_low`, `_high`
            and `_redrawn` (the control), or in routed mode `cosine` and `num_shared`; and by `layer` the sample.
        main: The measure asked for, first in tables and figures.
        mode: "all" or "routed".
        statistics: The accumulator behind it, by name.
        context: What was looked at.
        sampler: Which tokens were counted.
        notes: What is missing and why.
    """

    table: xr.Dataset
    main: str
    mode: str
    statistics: dict[str, Statistic]
    context: Context
    sampler: Sampler
    notes: list[str] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """Measures in the table, the one asked for first."""
        return [self.main, *(name for name in DEFINITIONS if name in self.table and name != self.main)]

    def frames(self) -> dict[str, pd.DataFrame]:
        """`similarity`: a row per layer and measure. `similarity_pairs`: each layer's most alike pairs by `main`."""
        summaries, pairs = [], []
        i_P, j_P = np.triu_indices(self.table.sizes["expert"], 1)
        for layer in self.table["layer"].values.tolist():
            at = self.table.sel(layer=layer)
            sizes = {name: int(at[name]) for name in ("num_samples", "num_documents") if name in at}
            for measure in self.measures:
                values_P = at[measure].values[i_P, j_P]
                known_P = np.isfinite(values_P)
                row = {"layer": layer, "measure": measure, "mode": self.mode, "num_tokens": int(at["num_tokens"])}
                row |= sizes | {"num_pairs": int(known_P.sum())} | _spread(values_P[known_P])
                if f"{measure}_redrawn" in at:
                    control_P = at[f"{measure}_redrawn"].values[i_P, j_P]
                    row |= {f"{k}_redrawn": v for k, v in _spread(control_P[np.isfinite(control_P)]).items()}
                    low_P = at[f"{measure}_low"].values[i_P, j_P]
                    sure_P = np.isfinite(low_P)
                    above_P = low_P[sure_P] > row["quantile_95_redrawn"]
                    row["share_above_redrawn"] = float(above_P.mean()) if above_P.size else np.nan
                summaries.append(row)
            main_P = at[self.main].values[i_P, j_P]
            order = np.argsort(np.where(np.isfinite(main_P), -main_P, np.inf), kind="stable")
            for place, pair in enumerate(order[: min(TOP_PAIRS, int(np.isfinite(main_P).sum()))]):
                i, j = int(i_P[pair]), int(j_P[pair])
                row = {"layer": layer, "place": place, "expert": i, "other_expert": j}
                row |= {str(name): variable.values[i, j].item() for name, variable in _pairwise(at).items()}
                pairs.append(row)
        return {"similarity": pd.DataFrame(summaries), "similarity_pairs": pd.DataFrame(pairs)}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """`similarity`: every number of the table, pairs as (layer, expert, other expert)."""
        numbers = {str(name): variable.values for name, variable in self.table.data_vars.items()}
        return {"similarity": {"layers": self.table["layer"].values, **numbers}}

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """For each layer a heat map with dendrogram, and one beside its controls; over layers, the spread of pairs."""
        yield from similarity_figures.draw(self.table, self.context, self.measures, self.mode)


def similarity(
    model: MoEModel,
    corpus: Corpus,
    *,
    method: Method | None = None,
    estimator: Estimator = "minibatch",
    mode: Mode = "all",
    num_tokens: int = 100_000,
    num_samples: int = NUM_SAMPLES,
    layers: Sequence[int] | None = None,
    control: bool = True,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    scratch: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    comparing: Callable[[int], None] | None = None,
) -> SimilarityRun:
    """Compares what all experts of a layer put out, before any routing weight.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`.
        method: "cka" (also gives the cosines) or "cosine"; None: "cka", in routed mode "cosine".
        estimator: "minibatch": terms averaged over minibatches of 256, memory does not depend on the sample's size;
            "exact": all pairs of tokens, outputs in a file.
        mode: "all": every expert is run on the same sample of the layer's inputs; "routed": each expert's outputs on
            the tokens it was given, compared where two experts share a token.
        num_tokens: Tokens to run through the model.
        num_samples: Most of them that every expert is run on.
        layers: MoE layers; None for all that are loaded.
        control: Whether the same experts with re-drawn weights are compared too.
        seed: Chooses documents, windows, the sample, groups of documents and the control's weights.
        sequence_length: Longest window of a document.
        batch_tokens: Padded tokens in a batch.
        scratch: Folder for the exact estimator's file; None: the system's temporary one.
        progress: Called after each batch with the number of tokens counted in it.
        comparing: Called with each layer before its experts are compared.

    Returns:
        The run: `.table`, `.frames()`, `.arrays()`, `.figures()`, `.statistics`.

    Raises:
        UsageError: Fewer than 4 tokens for CKA, CKA of routed tokens, or a layer that does not exist.
    """
    method = method or default_method(mode)
    check(method, mode, min(num_tokens, num_samples))
    chosen = model.check_layers(layers)
    context = Context(
        model=model,
        layers=tuple(chosen),
        domains=corpus.domains,
        groups=corpus.groups,
        corpus_name=corpus.name,
        num_tokens=num_tokens,
        seed=seed,
        predictions=False,
    )
    statistic: LayerInputs | SharedTokens
    if mode == "all":
        statistic = LayerInputs(
            layers=chosen,
            model_width=model.model_width,
            num_samples=min(num_tokens, num_samples),
            dtype=str(model.dtype).removeprefix("torch."),
            seed=seed,
            device=model.device,
        )
    else:
        num_groups = NUM_GROUPS if 16 * NUM_GROUPS * len(chosen) * model.num_experts**2 <= MOST_STATE_BYTES else 1
        statistic = SharedTokens(
            layers=chosen,
            num_experts=model.num_experts,
            num_experts_per_token=model.num_experts_per_token,
            num_groups=num_groups,
            seed=seed,
            device=model.device,
        )
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=num_tokens,
        seed=seed,
        sequence_length=sequence_length,
        max_positions=model.max_positions,
        batch_tokens=batch_tokens,
    )
    feed(model, sampler, [statistic], layers=chosen, on_batch=progress)
    context = Context(**{**vars(context), "num_tokens": int(sampler.num_tokens_D.sum())})
    if isinstance(statistic, SharedTokens):
        name, table = "shared_tokens", statistic.compute()
    else:
        name = "layer_inputs"
        table = all_tokens(
            statistic, model, method=method, estimator=estimator, control=control, scratch=scratch, comparing=comparing
        )
    notes = gaps(table, method)
    for note in notes:
        warnings.warn(note, MoescopeWarning, stacklevel=2)
    return SimilarityRun(table, method, mode, {name: statistic}, context, sampler, notes)


def all_tokens(
    inputs: LayerInputs,
    model: MoEModel,
    *,
    method: Method = "cka",
    estimator: Estimator = "minibatch",
    control: bool = True,
    scratch: str | Path | None = None,
    comparing: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Runs every expert on its layer's sample and compares all pairs; see `similarity`.

    Raises:
        UsageError: The sample holds fewer than 4 tokens, and CKA was asked for.
    """
    tables = []
    for layer in inputs.layers:
        if comparing is not None:
            comparing(layer)
        sample = inputs.sample(layer)
        check(method, "all", sample.inputs_NM.shape[0])
        cka, exact = method == "cka", estimator == "exact"
        options = {"cka": cka, "exact": exact, "seed": inputs.seed, "scratch": scratch}
        own = compare(expert_runs.trained(model, layer), sample, **options)  # type: ignore[arg-type]
        other = None
        if control:
            run = expert_runs.redrawn(model, layer, seed=inputs.seed)
            other = compare(run, sample, **options, intervals=False)  # type: ignore[arg-type]
        tables.append(_table_of(own, other, exact=exact))
    table = xr.concat(tables, xr.Variable("layer", inputs.layers))
    experts = np.arange(model.num_experts)
    return xr.merge([inputs.compute(), table.assign_coords(expert=experts, other_expert=experts)])


def _table_of(own: Comparison, control: Comparison | None, *, exact: bool) -> xr.Dataset:
    """One layer's measures as (expert, other_expert)."""
    how = "all pairs of tokens" if exact else f"terms averaged over {own.num_minibatches} minibatches of ~{MINIBATCH}"
    reach = f"95 % interval, delete-one jackknife over {int(own.present_G.sum())} hash groups of documents"
    variables = {}
    for name, (whole_EE, without_GEE) in own.measures.items():
        low_EE, high_EE = interval(whole_EE, without_GEE, own.present_G)
        words = f"{DEFINITIONS[name]}; {how}"
        given = {"": (whole_EE, words), "_low": (low_EE, f"lower end, {reach}"), "_high": (high_EE, f"upper, {reach}")}
        if control is not None:
            given["_redrawn"] = control.measures[name][0], f"{words}; experts with re-drawn weights of equal scale"
        for suffix, (values_EE, definition) in given.items():
            units = "cosine" if "cosine" in name else "CKA"
            attrs = {"units": units, "definition": definition}
            variables[name + suffix] = ("expert", "other_expert"), values_EE.numpy(), attrs
    return xr.Dataset(variables)


def check(method: str | None, mode: str, num_tokens: int) -> None:
    """Refuses what can't be compared, before anything is loaded; arguments as of `similarity`.

    Raises:
        UsageError: CKA of routed tokens, or of fewer than 4; no token at all.
    """
    method = method or default_method(mode)
    if method == "cka" and mode == "routed":
        raise UsageError(
            "CKA compares experts on the same tokens, and in routed mode each has its own",
            remedy="use --mode all, or --method cosine",
        )
    needed = MIN_TOKENS if method == "cka" and mode == "all" else 1
    if num_tokens < needed:
        raise UsageError(
            f"{method} of {num_tokens} token{'' if num_tokens == 1 else 's'}",
            expected=f"{needed} or more",
            remedy="raise --num-tokens",
        )


def default_method(mode: str) -> Method:
    """CKA needs all experts on the same tokens; where each has its own, cosine."""
    return "cosine" if mode == "routed" else "cka"


def gaps(table: xr.Dataset, main: str) -> list[str]:
    """What has no number in a table of similarities, and why, a sentence for each kind."""
    found = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        own_E = np.diagonal(at[main].values)
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
        elif int(at["num_documents"]) < MIN_DOCUMENTS:
            number = int(at["num_documents"])
            found.append(
                f"layer {layer}: no intervals, the sample is from {number} documents of {MIN_DOCUMENTS} needed"
            )
    return found


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
