"""The table of maps: coordinates of outputs, quality of each layer's map, mean outputs on a plane, and all rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.map.projection import MIN_DIST, MIN_POINTS, NUM_EPOCHS, Plane, comparable, project, trust
from moescope.errors import warn
from moescope.measures.neighbors import nearest, recovery
from moescope.models.token_text import token_texts
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moescope.analyses.map.options import MapOptions
    from moescope.context import Context
    from moescope.statistics.contribution import ExpertContribution
    from moescope.statistics.samples.outputs import ExpertSamples, OutputSample

KINDS = ("expert", "domain")
_POINT = {
    "point_layer": ("", "layer of the output"),
    "point_expert": ("", "expert whose output it is"),
    "point_domain": ("", "domain of the token"),
    "token_id": ("token id", "the token read"),
    "token": ("text", "the token read, made visible"),
    "document": ("", "hash of the token's document, hexadecimal"),
    "position": ("tokens", "position of the token in its document"),
    "x": ("", "horizontal coordinate on the map"),
    "y": ("", "vertical coordinate on the map"),
}
_QUALITY = {
    "num_points": ("outputs", "outputs on the map"),
    "num_documents": ("documents", "documents that their tokens are from"),
    "num_experts": ("experts", "experts that have any"),
    "method": ("", "method of projection"),
    "metric": ("", "cosine: outputs were divided by their norm first, so that their directions are compared"),
    "num_components": ("", "principal components kept"),
    "variance_explained": ("share", "share of the outputs' variance that these explain"),
    "variance_explained_xy": ("share", "share of the outputs' variance that the first two components explain"),
    "num_neighbors": ("points", "neighbors: of the projection, the trustworthiness and the votes"),
    "min_dist": ("", "UMAP's min_dist; empty for PCA"),
    "num_epochs": ("", "UMAP's n_epochs; empty for PCA"),
    "seed": ("", "seed of sample and projection"),
    "trustworthiness": (
        "0 to 1",
        "how far neighbors on the map are neighbors in the full space (Venna, Kaski 2001)",
    ),
    "num_judged": ("outputs", "outputs that have a neighbor of another document"),
}
_RECOVERED = {
    "accuracy": "share of outputs whose nearest neighbors in the full space, of other documents, have by majority the "
    "same {}",
    "ci_low": "lower end of its 95 % interval, Poisson bootstrap over documents, neighbors held fixed",
    "ci_high": "upper end of its 95 % interval, Poisson bootstrap over documents, neighbors held fixed",
    "chance": "share of the most frequent {} (majority-class baseline)",
}
_OF_LAYER = _QUALITY | {
    f"{kind}_{what}": ("share", definition.format(kind)) for kind in KINDS for what, definition in _RECOVERED.items()
}


def make(samples: OutputSample, contribution: ExpertContribution, context: Context, options: MapOptions) -> xr.Dataset:
    """The labeled numbers; see `Map.table`."""
    parts, qualities, gaps = [], [], []
    for layer in samples.layers:
        sample = samples.sample(layer)
        without = sorted(set(range(samples.num_experts)) - set(sample.expert_ids_N.tolist()))
        if without:
            gaps.append(f"layer {layer}: expert{'s' if len(without) > 1 else ''} {_listed(without)}")
        plane, quality = _one_layer(layer, sample, options, context.seed)
        qualities.append(quality)
        if plane is not None:
            parts.append(_points(layer, sample, plane, context))
    if gaps:
        text = f"not on the map, since no token was routed to them: {'; '.join(gaps)}"
        warn(text, stacklevel=3)
    points = pd.concat(parts) if parts else pd.DataFrame(columns=list(_POINT))
    quality_L = pd.DataFrame(qualities)
    variables = {name: variable("point", points[name].to_numpy(), *about) for name, about in _POINT.items()}
    for name in quality_L.columns.drop("layer"):
        variables[name] = variable("layer", quality_L[name].to_numpy(), *_OF_LAYER[name])
    table = xr.Dataset(variables, coords={"layer": samples.layers}, attrs=asdict(options))
    return xr.merge([table, _of_means(contribution, samples.layers)], combine_attrs="override")


def _one_layer(
    layer: int, sample: ExpertSamples, options: MapOptions, seed: int
) -> tuple[Plane | None, dict[str, Any]]:
    """A layer's outputs on a plane, None where they can't be projected; and the quality of that map."""
    points = comparable(sample.outputs_NM.float().cpu().numpy(), options.metric)
    row: dict[str, Any] = {"layer": layer, "num_points": len(points), "num_documents": sample.num_documents}
    row["num_experts"] = int(sample.expert_ids_N.unique().shape[0])
    num_neighbors = min(options.num_neighbors, max(1, len(points) - 1))
    plane, method = None, options.method
    if method == "umap" and len(points) <= options.num_neighbors:
        method = "pca"
        warn(
            f"layer {layer}: {len(points)} outputs are too few for UMAP with {options.num_neighbors} neighbors; "
            "projected by PCA (raise `num_tokens`, or lower `num_neighbors`)",
            stacklevel=4,
        )
    try:
        plane = project(points, method, num_neighbors=num_neighbors, seed=seed, num_components=options.num_components)
    except ValueError as error:
        warn(f"layer {layer} has no map: {error}", stacklevel=4)
    row |= {
        name: getattr(plane, name, np.nan) for name in ("num_components", "variance_explained", "variance_explained_xy")
    }
    by_umap = plane is not None and method == "umap"
    row |= {"method": method, "metric": options.metric, "num_neighbors": num_neighbors, "seed": seed}
    row |= {"min_dist": MIN_DIST if by_umap else np.nan, "num_epochs": NUM_EPOCHS if by_umap else np.nan}
    row["trustworthiness"] = np.nan if plane is None else trust(points, plane.xy, num_neighbors)
    row["num_judged"] = 0
    documents_N = sample.document_hashes_N.cpu()
    if not len(points):
        return plane, row | {f"{kind}_{what}": np.nan for kind in KINDS for what in _RECOVERED}
    neighbors_NK, _ = nearest(torch.from_numpy(points), num_neighbors, documents_N)
    for kind, labels_N in zip(KINDS, (sample.expert_ids_N, sample.domain_ids_N), strict=True):
        if kind == "domain" and len(torch.unique(labels_N)) < 2:  # nothing to tell apart
            row |= {f"{kind}_{what}": np.nan for what in _RECOVERED}
            continue
        recovered = recovery(labels_N, neighbors_NK, documents_N, seed=seed)
        row |= {f"{kind}_accuracy": recovered.accuracy, f"{kind}_ci_low": recovered.low}
        row |= {f"{kind}_ci_high": recovered.high, f"{kind}_chance": recovered.chance}
        row["num_judged"] = recovered.num_points
    return plane, row


def _points(layer: int, sample: ExpertSamples, plane: Plane, context: Context) -> pd.DataFrame:
    token_ids = sample.token_ids_N.tolist()
    texts = token_texts(context.model.tokenizer, token_ids)
    hashes = sample.document_hashes_N.cpu().numpy().view(np.uint64).tolist()
    columns = {
        "point_layer": np.full(len(token_ids), layer),
        "point_expert": sample.expert_ids_N.cpu().numpy(),
        "point_domain": np.array([context.domains[domain] for domain in sample.domain_ids_N.tolist()], dtype=np.str_),
        "token_id": np.array(token_ids),
        "token": np.array([texts[token_id] for token_id in token_ids], dtype=np.str_),
        "document": np.array([f"{number:016x}" for number in hashes], dtype=np.str_),
        "position": sample.positions_N.cpu().numpy(),
        "x": plane.xy[:, 0],
        "y": plane.xy[:, 1],
    }
    return pd.DataFrame({name: columns[name] for name in _POINT})


def _of_means(contribution: ExpertContribution, layers: list[int]) -> xr.Dataset:
    """The experts' mean outputs on a plane, by PCA, and the domain that selects each expert most."""
    by_layer = []
    for layer in layers:
        means_EM = contribution.mean_outputs(layer).cpu().numpy()
        seen_E = np.isfinite(means_EM).all(axis=1)
        xy_E2 = np.full((len(means_EM), 2), np.nan)
        share = np.nan
        if seen_E.sum() >= MIN_POINTS and (means_EM[seen_E] != means_EM[seen_E][0]).any():
            directions = comparable(means_EM[seen_E], "cosine")
            plane = project(directions, "pca", num_neighbors=1, seed=0, num_components=2)
            xy_E2[seen_E], share = plane.xy, plane.variance_explained_xy
        by_layer.append((xy_E2, share))
    counted = contribution.compute().sel(layer=layers)
    with np.errstate(invalid="ignore"):
        share_LDE = (counted["num_selected_by_domain"] / counted["num_tokens_by_domain"]).fillna(0.0).values
    names_LE = np.array(contribution.domains, dtype=np.str_)[share_LDE.argmax(axis=1)]
    axis = "principal component {} of the experts' mean outputs, each divided by its norm"
    dims = ("layer", "expert")
    return xr.Dataset(
        {
            "num_selected": counted["num_selected"],
            "top_domain": variable(
                dims, names_LE, "", "the domain of whose tokens the largest share is routed to the expert"
            ),
            "mean_x": variable(dims, np.stack([xy[:, 0] for xy, _ in by_layer]), "", axis.format(1)),
            "mean_y": variable(dims, np.stack([xy[:, 1] for xy, _ in by_layer]), "", axis.format(2)),
            "means_variance_explained_xy": variable(
                "layer",
                np.array([share for _, share in by_layer]),
                "share",
                "share of the variance of the directions of mean outputs that these two explain",
            ),
        },
        coords={"layer": layers, "expert": np.arange(contribution.num_experts)},
    )


def rows(table: xr.Dataset) -> dict[str, pd.DataFrame]:
    """`map`: a row per output. `map_quality`: a row per layer. `map_experts`: a row per layer and expert."""
    by_layer = [str(name) for name, values in table.data_vars.items() if values.dims == ("layer",)]
    by_expert = [str(name) for name, values in table.data_vars.items() if values.dims == ("layer", "expert")]
    return {
        "map": pd.DataFrame({name.removeprefix("point_"): table[name].values for name in _POINT}),
        "map_quality": table[by_layer].to_dataframe().reset_index()[["layer", *_in_order(by_layer)]],
        "map_experts": table[by_expert].to_dataframe(dim_order=["layer", "expert"]).reset_index(),
    }


def _in_order(names: Sequence[str]) -> list[str]:
    return [*(name for name in _OF_LAYER if name in names), *(name for name in names if name not in _OF_LAYER)]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
