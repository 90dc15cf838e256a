"""Map: where experts' outputs lie, on a plane, and how well neighbours recover expert and domain."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr

from moescope.analyses.map import figures as map_figures
from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.analyses.contribution.analysis import expert_contribution
from moescope.analyses.contribution.figures import evenly
from moescope.analyses.map.projection import (
    MIN_DIST,
    MIN_POINTS,
    NUM_COMPONENTS,
    NUM_EPOCHS,
    Method,
    Metric,
    Plane,
    comparable,
    project,
    trust,
)
from moescope.errors import MoescopeWarning, UsageError
from moescope.models.token_text import token_texts
from moescope.measures.neighbors import nearest, recovery
from moescope.statistics.samples.outputs import ExpertSamples, OutputSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic
    from moescope.statistics.contribution import ExpertContribution

NUM_NEIGHBORS = 15
NUM_SAMPLES = 50
MOST_LAYERS = 4

_QUALITY = {
    "num_points": ("outputs", "outputs on the map"),
    "num_documents": ("documents", "documents that their tokens are from"),
    "num_experts": ("experts", "experts that have any"),
    "method": ("", "what laid them out"),
    "metric": ("", "cosine: outputs were divided by their norm first, so that their directions are compared"),
    "num_components": ("", "principal components kept"),
    "variance_explained": ("share", "share of the outputs' variance that these hold"),
    "variance_explained_xy": ("share", "share of the outputs' variance that the first two components hold"),
    "num_neighbors": ("points", "neighbours: of the layout, the trustworthiness and the votes"),
    "min_dist": ("", "UMAP's min_dist; empty for PCA"),
    "num_epochs": ("", "UMAP's n_epochs; empty for PCA"),
    "seed": ("", "seed of sample and layout"),
    "trustworthiness": ("0 to 1", "how far neighbours on the map are neighbours in the full space (Venna, Kaski 2001)"),
}
_RECOVERED = {
    "accuracy": "share of outputs whose nearest neighbours in the full space, of other documents, have by majority the "
    "same {}",
    "ci_low": "lower end of its 95 % interval, Poisson bootstrap over documents, neighbours held fixed",
    "ci_high": "upper end of its 95 % interval, Poisson bootstrap over documents, neighbours held fixed",
    "chance": "share of the commonest {}: what always naming that one would give",
}
KINDS = ("expert", "domain")


@dataclass(frozen=True)
class Map(Analysis):
    """A sample of every expert's outputs on its own tokens, laid out by PCA and UMAP.

    Attributes:
        method: "umap", of the leading principal components, or "pca", the first two of them.
        num_neighbors: Neighbours that UMAP joins points to, that trustworthiness looks at, and that vote.
        num_samples: Outputs of each expert: those of its tokens with the smallest hash.
        metric: What is near: "cosine", outputs of like direction, whatever their norms; or "euclidean".
        num_components: Principal components that UMAP is given.
        max_layers: Most layers to map, spread evenly over those looked at; None for all.
    """

    name: ClassVar[str] = "map"
    summary: ClassVar[str] = "Map: where experts' outputs lie, and how well neighbours recover expert and domain."
    about: ClassVar[str] = "experts"

    method: Method = "umap"
    num_neighbors: int = NUM_NEIGHBORS
    num_samples: int = NUM_SAMPLES
    metric: Metric = "cosine"
    num_components: int = NUM_COMPONENTS
    max_layers: int | None = MOST_LAYERS

    def layers_of(self, context: Context) -> list[int]:
        """The layers that are mapped."""
        return [context.layers[place] for place in evenly(len(context.layers), self.max_layers or len(context.layers))]

    def check(self, context: Context) -> None:
        """Refuses more neighbours than there can be points.

        Raises:
            UsageError: So it is, or there are not two neighbours.
        """
        if self.num_neighbors < 2 or self.num_samples < 1 or self.num_components < 2:
            raise UsageError(
                f"a map of {self.num_samples} outputs an expert in {self.num_components} components with "
                f"{self.num_neighbors} neighbours",
                expected="at least 1 output, 2 components and 2 neighbours",
                remedy="raise --num-samples, --num-components or --num-neighbors",
            )
        model = context.model
        most = min(context.num_tokens * model.num_experts_per_token, model.num_experts * self.num_samples)
        if most < MIN_POINTS or (self.method == "umap" and self.num_neighbors >= most):
            raise UsageError(
                f"{self.num_neighbors} neighbours asked of at most {most} outputs in a layer",
                expected="fewer neighbours than outputs",
                remedy="raise --num-tokens or --num-samples, lower --num-neighbors, or use --method pca",
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """A sample of outputs of the layers mapped, and every expert's mean output."""
        model = context.model
        sample = OutputSample(
            layers=self.layers_of(context),
            num_experts=model.num_experts,
            model_width=model.model_width,
            num_samples=self.num_samples,
            dtype=str(model.dtype).removeprefix("torch."),
            seed=context.seed,
            device=model.device,
        )
        return {"output_sample": sample} | expert_contribution(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `point`: layer, expert, domain, token, document, x, y; by `layer`: quality; by `layer, expert`: means."""
        samples = cast(OutputSample, statistics["output_sample"])
        parts, qualities, gaps = [], [], []
        for layer in samples.layers:
            sample = samples.sample(layer)
            without = sorted(set(range(samples.num_experts)) - set(sample.expert_ids_N.tolist()))
            if without:
                gaps.append(f"layer {layer}: expert{'s' if len(without) > 1 else ''} {_listed(without)}")
            plane, quality = self._one_layer(layer, sample, context.seed)
            qualities.append(quality)
            if plane is not None:
                parts.append(_points(layer, sample, plane, context))
        if gaps:
            warnings.warn(f"no token, so not on the map: {'; '.join(gaps)}", MoescopeWarning, stacklevel=2)
        points = pd.concat(parts) if parts else pd.DataFrame(columns=list(_POINT))
        attrs = {name: {"units": units, "definition": words} for name, (units, words) in _attributes().items()}
        by_point = {name: ("point", points[name].to_numpy(), attrs[name]) for name in _POINT}
        quality = pd.DataFrame(qualities)
        by_layer = {
            str(name): ("layer", quality[name].to_numpy(), attrs[str(name)]) for name in quality if name != "layer"
        }
        table = xr.Dataset(by_point | by_layer, coords={"layer": samples.layers}, attrs=asdict(self))
        return xr.merge([table, _of_means(cast("ExpertContribution", statistics["contribution"]), samples.layers)],
                        combine_attrs="override")  # fmt: skip

    def _one_layer(self, layer: int, sample: ExpertSamples, seed: int) -> tuple[Plane | None, dict[str, Any]]:
        points = comparable(sample.outputs_NM.float().cpu().numpy(), self.metric)
        row: dict[str, Any] = {"layer": layer, "num_points": len(points), "num_documents": sample.num_documents}
        row["num_experts"] = int(sample.expert_ids_N.unique().shape[0])
        num_neighbors = min(self.num_neighbors, max(1, len(points) - 1))
        plane, method = None, self.method
        try:
            if method == "umap" and len(points) <= self.num_neighbors:
                method = "pca"
                warnings.warn(
                    f"layer {layer}: {len(points)} outputs are too few for UMAP with {self.num_neighbors} neighbours; "
                    "drawn by PCA (more --num-tokens, or fewer --num-neighbors)",
                    MoescopeWarning,
                    stacklevel=3,
                )
            plane = project(points, method, num_neighbors=num_neighbors, seed=seed, num_components=self.num_components)
        except ValueError as error:
            warnings.warn(f"layer {layer} has no map: {error}", MoescopeWarning, stacklevel=3)
        row |= {name: getattr(plane, name, np.nan) for name in ("num_components", "variance_explained",
                                                                "variance_explained_xy")}  # fmt: skip
        laid_out = plane is not None and method == "umap"
        row |= {"method": method, "metric": self.metric, "num_neighbors": num_neighbors, "seed": seed}
        row |= {"min_dist": MIN_DIST if laid_out else np.nan, "num_epochs": NUM_EPOCHS if laid_out else np.nan}
        row["trustworthiness"] = np.nan if plane is None else trust(points, plane.xy, num_neighbors)
        row["num_judged"] = 0
        documents_N = sample.document_hashes_N.cpu()
        if len(points):
            neighbours_NK, _ = nearest(torch.from_numpy(points), num_neighbors, documents_N)
            for kind, labels_N in zip(KINDS, (sample.expert_ids_N, sample.domain_ids_N), strict=True):
                found = recovery(labels_N, neighbours_NK, documents_N, seed=seed)
                row |= {f"{kind}_accuracy": found.accuracy, f"{kind}_ci_low": found.low, f"{kind}_ci_high": found.high}
                row |= {f"{kind}_chance": found.chance, "num_judged": found.num_points}
        else:
            row |= {f"{kind}_{what}": np.nan for kind in KINDS for what in _RECOVERED}
        return plane, row

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`map`: a row per output. `map_quality`: a row per layer. `map_experts`: a row per layer and expert."""
        quality = [str(name) for name, variable in table.data_vars.items() if variable.dims == ("layer",)]
        by_expert = [str(name) for name, variable in table.data_vars.items() if variable.dims == ("layer", "expert")]
        return {
            "map": pd.DataFrame({name.removeprefix("point_"): table[name].values for name in _POINT}),
            "map_quality": table[quality].to_dataframe().reset_index()[["layer", *_order(quality)]],
            "map_experts": table[by_expert].to_dataframe(dim_order=["layer", "expert"]).reset_index(),
        }

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """For each layer the outputs by domain and by expert, and each expert alone; means; recovery by layer."""
        yield from map_figures.draw(table, context)


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
    """The experts' mean outputs on a plane, by PCA, and the domain each expert serves most."""
    places = []
    for layer in layers:
        means_EM = contribution.mean_outputs(layer).cpu().numpy()
        seen_E = np.isfinite(means_EM).all(axis=1)
        xy_E2 = np.full((len(means_EM), 2), np.nan)
        share = np.nan
        if seen_E.sum() >= MIN_POINTS and (means_EM[seen_E] != means_EM[seen_E][0]).any():
            directions = comparable(means_EM[seen_E], "cosine")
            plane = project(directions, "pca", num_neighbors=1, seed=0, num_components=2)
            xy_E2[seen_E], share = plane.xy, plane.variance_explained_xy
        places.append((xy_E2, share))
    counted = contribution.compute().sel(layer=layers)
    with np.errstate(invalid="ignore"):
        share_LDE = (counted["num_selected_by_domain"] / counted["num_tokens_by_domain"]).fillna(0.0).values
    names = np.array(contribution.domains, dtype=np.str_)[share_LDE.argmax(axis=1)]
    shares = np.array([share for _, share in places])
    axis = "principal component {} of the experts' mean outputs, each divided by its norm"
    by_expert = ("layer", "expert")
    return xr.Dataset(
        {
            "num_selected": counted["num_selected"],
            "foremost_domain": (by_expert, names, {
                "units": "", "definition": "the domain of whose tokens the expert is selected for the largest share"}),
            "mean_x": (by_expert, np.stack([xy[:, 0] for xy, _ in places]), {
                "units": "", "definition": axis.format(1)}),
            "mean_y": (by_expert, np.stack([xy[:, 1] for xy, _ in places]), {
                "units": "", "definition": axis.format(2)}),
            "means_variance_explained_xy": ("layer", shares, {
                "units": "share", "definition": "share of the variance of their directions that these two hold"}),
        },
        coords={"layer": layers, "expert": np.arange(contribution.num_experts)},
    )  # fmt: skip


_POINT = {
    "point_layer": ("", "layer of the output"),
    "point_expert": ("", "expert that put it out"),
    "point_domain": ("", "domain of the token"),
    "token_id": ("token id", "the token read"),
    "token": ("text", "the token read, made visible"),
    "document": ("", "hash of the token's document, hexadecimal"),
    "position": ("tokens", "position of the token in its document"),
    "x": ("", "horizontal place on the map"),
    "y": ("", "vertical place on the map"),
}


def _attributes() -> dict[str, tuple[str, str]]:
    judged = {"num_judged": ("outputs", "outputs that have a neighbour of another document")}
    recovered = {
        f"{kind}_{what}": ("share", words.format(kind)) for kind in KINDS for what, words in _RECOVERED.items()
    }
    return _POINT | _QUALITY | judged | recovered


def _order(names: list[str]) -> list[str]:
    known = [*_QUALITY, "num_judged", *(f"{kind}_{what}" for kind in KINDS for what in _RECOVERED)]
    return [*(name for name in known if name in names), *(name for name in names if name not in known)]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
