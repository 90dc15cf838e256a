"""`moescope similarity`: how alike experts are in what they put out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from moescope.cli.capture import run_analyses
from moescope.cli.options import AT_LEAST_ONE, CaptureOptions, one_of
from moescope.cli.terminal import note

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis

COMPARISON = Group.create_ordered("Comparison")


def similarity(
    *,
    method: Annotated[
        Literal["cka", "cosine"] | None, one_of("cka", "cosine", group=COMPARISON), Parameter(show_default=False)
    ] = None,
    estimator: Annotated[Literal["minibatch", "exact"], one_of("minibatch", "exact", group=COMPARISON)] = "minibatch",
    mode: Annotated[Literal["all", "routed"], one_of("all", "routed", group=COMPARISON)] = "all",
    num_samples: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=COMPARISON)] = 10_000,
    control: Annotated[bool, Parameter(group=COMPARISON)] = True,
    scratch: Annotated[Path | None, Parameter(group=COMPARISON)] = None,
    options: CaptureOptions | None = None,
) -> None:
    """Similarity: how alike experts are in what they put out, beside what sharing inputs alone would give.

    Every expert of a layer is run on the same tokens, a random sample of those that went through the model, and all
    pairs of experts are compared, before any routing weight.

    **debiased CKA**: 1 where one expert's outputs are the other's up to rotation and scale, 0 where they have nothing
    to do with each other; can be slightly negative. Linear CKA, which for few tokens is high whatever is compared, is
    in the tables beside it.

    **deconfounded CKA**: what is left of it once what both owe to sharing inputs is regressed out.

    **re-drawn**: the same for experts with random weights of equal scale: what likeness there is for no reason.

    **cosine**, **centred cosine**: of the outputs for each token, averaged over tokens; and after each expert's mean
    output was subtracted.

    Writes tables (.csv, .parquet), all pairs (arrays/similarity.npz), heat maps, the sample and a manifest to the
    folder --out.

    Args:
        method: What the heat maps show: cka, or cosine, which computes no CKA. Default: cka; in routed mode cosine.
        estimator: minibatch: terms averaged over minibatches of 256 tokens, in memory that does not grow with the
            sample; exact: all pairs of tokens, outputs in half precision in a temporary file.
        mode: all: every expert sees the same tokens; routed: each expert its own, and two are compared on the tokens
            that were routed to both.
        num_samples: Tokens that every expert is run on, at most.
        control: Compare experts with re-drawn weights too.
        scratch: Folder for the temporary file of --estimator exact, which takes 2 bytes for each expert, token and
            number of a hidden state: 2.7 GB for 10,000 tokens of OLMoE-1B-7B. Default: the system's.
        options: Which model, text, layers, folder.
    """

    def asked() -> list[Analysis]:
        from moescope.analyses.similarity import Similarity

        return [
            Similarity(
                method=method or ("cosine" if mode == "routed" else "cka"),
                estimator=estimator,
                mode=mode,
                num_samples=num_samples,
                control=control,
                scratch=None if scratch is None else str(scratch),
            )
        ]

    run_analyses(asked, options or CaptureOptions(), command="similarity")
    if mode == "all" and not control:
        note("without --control no one can say how much of this likeness there would be for no reason")
