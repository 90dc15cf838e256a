"""Intervals from leaving out one group of documents at a time.

A bootstrap draws documents twice, and repeated rows appear off the diagonal of a Gram matrix as two tokens in perfect
agreement: it would undo the debiasing of an estimator of similarity. The jackknife never repeats a row.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student
from torch import Tensor

from moescope.measures.constants import COVERAGE

NUM_GROUPS = 20
"""Groups of documents that are left out, one at a time."""


def interval(estimate: Tensor, without_G: Tensor, present_G: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Delete-one-group jackknife: `v = (G - 1) / G sum_g (theta_(g) - mean theta)^2`, ends `theta -+ t sqrt(v)`.

    `t` is Student's 97.5 % quantile with G - 1 degrees of freedom, G the groups that hold anything (Tukey 1958;
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11). Groups are taken as of equal size.

    Args:
        estimate: Estimates from everything, any shape.
        without_G: (G, *shape) the same without each group; NaN where too little is left.
        present_G: (G, *shape) or (G,): which groups hold anything of that estimate; None: all.

    Returns:
        Lower and upper ends, float64 of the estimate's shape; NaN where fewer than two groups hold anything, or where
        some group can't be left out.
    """
    values_G = without_G.double()
    if present_G is None:
        present_G = torch.ones_like(values_G, dtype=torch.bool)
    present_G = present_G.view(*present_G.shape, *[1] * (values_G.ndim - present_G.ndim)).expand_as(values_G)
    count = present_G.sum(0)
    present_values_G = torch.where(present_G, values_G, 0.0)
    mean = present_values_G.sum(0) / count
    squares = torch.where(present_G, (values_G - mean) ** 2, 0.0).sum(0)
    error = (squares * (count - 1) / count).sqrt()
    quantiles = [math.nan, math.nan, *(student.ppf((1 + COVERAGE) / 2, g - 1) for g in range(2, len(values_G) + 1))]
    reach = torch.tensor(quantiles, dtype=torch.float64, device=count.device)[count] * error
    return estimate.double() - reach, estimate.double() + reach
