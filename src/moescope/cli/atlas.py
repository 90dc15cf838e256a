"""`moescope atlas`: how much worse the model predicts each domain without each expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from moescope.cli.capture import run_analyses
from moescope.cli.options import AT_LEAST_ONE, CaptureOptions, one_of

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis

EFFECTS = Group.create_ordered("Effects")

# More than a report, which has other questions to answer, takes.
SAMPLE_TOKENS = {"gradient": 40_000, "exact": 5_000}
NUM_EXACT = 32
EXACT_TOKENS = 4_000


def atlas(
    *,
    method: Annotated[Literal["gradient", "exact"], one_of("gradient", "exact", group=EFFECTS)] = "gradient",
    experts: Annotated[list[int] | None, Parameter(consume_multiple=(1, None), group=EFFECTS)] = None,
    sample_tokens: Annotated[int | None, Parameter(validator=AT_LEAST_ONE, group=EFFECTS)] = None,
    options: CaptureOptions | None = None,
) -> None:
    """Causal atlas: how much worse the model predicts each domain without each expert.

    Runs the text through the model, keeps a sample of its documents, and measures on them what the loss would be if an
    expert's weight were 0 at every token, the others unchanged.

    **Δ loss**: the loss without the expert minus the loss with it, in nats per token of the domain: above 0 where the
    model needs the expert. With a 95 % interval, bootstrap over documents.

    **estimate by gradient**: -Σ w ∂loss/∂w + ½ Σ (w ∂loss/∂w)² over the domain's tokens, slope and curvature: one
    forward and one backward pass for all experts of all layers. Some experts are ablated for real, and the rank
    correlation says how well the two agree.

    **What foretells it**: rank correlations of Δ loss with how often an expert is selected, its weight, its lift and
    its saliency (mean w|o|), and with its own Δ loss on other documents, which says how much of the ranking is noise.

    Writes tables (.csv, .parquet), figures (.pdf, .png), the sampled text and a manifest to the folder --out.

    Args:
        method: gradient: the estimate; exact: real ablations of the experts asked for, run again from the
            changed layer on (all 1,024 of nano take about a thousand times as long as the gradient).
        experts: Experts to ablate for real, in each layer looked at. Default: all with --method exact, else 32 drawn
            by --seed.
        sample_tokens: Tokens of the sample, split over the domains. Default: 40,000, or 5,000 with --method exact; not
            more than --num-tokens.
        options: Which model, text, layers, folder.
    """

    def asked() -> list[Analysis]:
        from moescope.analyses.atlas import Atlas

        return [
            Atlas(
                method=method,
                experts=None if experts is None else tuple(experts),
                sample_tokens=sample_tokens or SAMPLE_TOKENS[method],
                num_exact=NUM_EXACT,
                exact_tokens=EXACT_TOKENS,
            )
        ]

    run_analyses(asked, options or CaptureOptions(), command="atlas")
