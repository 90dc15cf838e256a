"""`moescope weights`: how alike experts are in what they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import run_analyses
from moescope.cli.options import CaptureOptions, WeightsOptions

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis

COMPARISON = Group.create_ordered("Comparison")


def weights(
    *,
    pairs: Annotated[
        int | None, Parameter(validator=validators.Number(gte=0), show_default=False, group=COMPARISON)
    ] = None,
    seed: Annotated[int, Parameter(group=COMPARISON)] = 0,
    options: WeightsOptions | None = None,
) -> None:
    """Expert weights: how alike experts are in what they are, and how many directions each uses.

    Needs no text: reads the weights of the layers asked for and compares all pairs of experts of a layer.

    **cosine**: of two experts' gate, up or down matrices, each as one long vector; joined: all three as one.

    **matched cosine**: the same after the second expert's hidden neurons were put in the order (and, where it counts
    for nothing, the sign) that makes the joined cosine largest: the order neurons are stored in is arbitrary.

    **router cosine**: of two experts' rows of the router's matrix; centred: after their mean was subtracted, which a
    softmax does not see.

    **effective rank**: exp of the entropy of the shares s² of a matrix' singular values: how many directions it uses.

    **re-drawn**: the same for neurons as long as they are that point anywhere: what there is for no reason. A matched
    cosine is a maximum, so far above 0 for any two experts.

    Writes tables (.csv, .parquet), all pairs and spectra (arrays/weights.npz), figures (.pdf, .png) and a manifest to
    the folder --out.

    Args:
        pairs: Pairs of experts whose neurons are matched in each layer, a random sample if not all; 0: none. Default:
            all where that takes up to about half a minute a layer, else as many as do.
        seed: Chooses the sample of pairs, and the random directions.
        options: Which model, layers, folder.
    """

    def asked() -> list[Analysis]:
        from moescope.analyses.weights import Weights

        return [Weights(pairs=pairs)]

    given = CaptureOptions(**asdict(options or WeightsOptions()), seed=seed)
    run_analyses(asked, given, command="weights")
