"""Options of `moescope similarity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.errors import UsageError, at_least


@dataclass(frozen=True)
class SimilarityOptions:
    """How the outputs of experts are compared, and on how many tokens."""

    method: Literal["cka", "cosine"] | None = None
    """Measure that pairs are ranked and drawn by: cka, which computes the cosines too, or cosine, which computes no
    CKA. Default: cka; in routed mode cosine."""

    estimator: Literal["minibatch", "exact"] = "minibatch"
    """How CKA is estimated. minibatch: HSIC terms averaged over minibatches of 256 tokens, in memory that does not grow
    with the sample. exact: all pairs of tokens, outputs in half precision in a temporary file."""

    mode: Literal["all", "routed"] = "all"
    """all: every expert is run on the same sample of the layer's inputs. routed: each expert's outputs on the tokens
    routed to it, two experts compared on the tokens routed to both."""

    num_samples: int = 10_000
    """Tokens that every expert is run on, at most."""

    control: bool = True
    """Compute the random-weight baseline too: the same experts on the same inputs, weights resampled at equal scale."""

    scratch: str | None = None
    """Folder for the temporary file of the exact estimator, which takes 2 bytes for each expert, token and number of a
    hidden state: 2.7 GB for 10,000 tokens of OLMoE-1B-7B. Default: the system's."""

    def __post_init__(self) -> None:
        """Refuses CKA of routed tokens, and no tokens at all."""
        at_least(1, num_samples=self.num_samples)
        if self.method == "cka" and self.mode == "routed":
            raise UsageError(
                "`method=cka` compares experts on the same tokens; in routed mode each expert has its own tokens",
                remedy="use `mode=all`, or `method=cosine`",
            )
