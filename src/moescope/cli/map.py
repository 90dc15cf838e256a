"""`moescope map`: where experts' outputs lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import run_analyses
from moescope.cli.options import AT_LEAST_ONE, CaptureOptions, one_of

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis

MAP = Group.create_ordered("Map")
AT_LEAST_TWO = validators.Number(gte=2)


def map_outputs(
    *,
    method: Annotated[Literal["umap", "pca"], one_of("umap", "pca", group=MAP)] = "umap",
    metric: Annotated[Literal["cosine", "euclidean"], one_of("cosine", "euclidean", group=MAP)] = "cosine",
    num_neighbors: Annotated[int, Parameter(validator=AT_LEAST_TWO, group=MAP)] = 15,
    num_samples: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=MAP)] = 50,
    num_components: Annotated[int, Parameter(validator=AT_LEAST_TWO, group=MAP)] = 100,
    options: CaptureOptions | None = None,
) -> None:
    """Map: where experts' outputs lie, and how well neighbours recover expert and domain.

    Takes a random sample of every expert's own outputs on the tokens routed to it, before the routing weight, and lays
    the outputs of a layer out on a plane: by domain, by expert, and each expert alone.

    **trustworthiness**: 1 where all neighbours on the map are neighbours in the full space too; less, the further from
    it they are.

    **recovered**: the share of outputs whose nearest neighbours in the full space are by majority of the same expert
    (or domain). Neighbours of the same document are passed over: they would tell the document. Chance: always naming
    the commonest.

    Writes places, tables (.csv, .parquet), figures (.pdf, .png), the sample and a manifest to the folder --out. Without
    --layers four layers are mapped, the first, the last and two between.

    Args:
        method: umap: UMAP of the leading principal components, seeded; pca: the first two of them, in a moment.
        metric: What is near: cosine, outputs of like direction, whatever their lengths; or euclidean.
        num_neighbors: Neighbours that UMAP joins each output to, that trustworthiness looks at, and that vote.
        num_samples: Outputs of each expert, at most.
        num_components: Principal components that UMAP is given, at most.
        options: Which model, text, layers, folder.
    """
    options = options or CaptureOptions()
    every = options.layers is not None

    def asked() -> list[Analysis]:
        from moescope.analyses.map import MOST_LAYERS, Map

        return [
            Map(
                method=method,
                metric=metric,
                num_neighbors=num_neighbors,
                num_samples=num_samples,
                num_components=num_components,
                max_layers=None if every else MOST_LAYERS,
            )
        ]

    run_analyses(asked, options, command="map")
