"""One layer's experts compared on the same tokens: by minibatches in hash order, or exactly through a scratch file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.cka import HSIC, MinibatchHSIC, hsic, minibatches
from moescope.measures.cka_exact import OutputsFile, exact_hsic
from moescope.measures.constants import MIN_DOCUMENTS
from moescope.measures.cosine import CosineSums
from moescope.measures.jackknife import NUM_GROUPS
from moescope.measures.resampling import groups

if TYPE_CHECKING:
    from moescope.analyses.similarity.expert_runs import Run
    from moescope.statistics.samples.inputs import InputsSample

MINIBATCH = 256


@dataclass(frozen=True)
class Comparison:
    """Similarity of all pairs of a layer's experts: from all tokens (E, E), and without each group (G, E, E).

    Attributes:
        measures: By name; `cka` is debiased.
        present_G: Which groups hold any token; empty where there are too few documents for intervals.
        num_minibatches: 1 for exact.
    """

    measures: dict[str, tuple[Tensor, Tensor]]
    present_G: Tensor
    num_minibatches: int


def compare(
    run: Run,
    sample: InputsSample,
    *,
    cka: bool,
    exact: bool,
    seed: int = 0,
    intervals: bool = True,
    scratch: str | Path | None = None,
) -> Comparison:
    """Compares a layer's experts on its sample of inputs.

    Args:
        run: Gives the outputs of every expert and, last, the inputs.
        sample: The inputs, in ascending order of hash.
        cka: Whether CKA is wanted beside the cosines.
        exact: All pairs of tokens, outputs in a file; otherwise minibatches of about `MINIBATCH` tokens.
        seed: Deals documents into groups.
        intervals: Whether estimates without each group of documents are wanted.
        scratch: Folder for the file.
    """
    num_tokens = sample.inputs_NM.shape[0]
    num_groups = NUM_GROUPS if intervals and sample.num_documents >= MIN_DOCUMENTS else 0
    groups_N = groups(sample.document_hashes_N, max(1, num_groups), seed=seed)
    if exact:
        return _exactly(run, sample, groups_N, num_groups, cka=cka, scratch=scratch)
    average, cosines, centered, num_minibatches = MinibatchHSIC(), None, None, 0
    for start, end in minibatches(num_tokens, MINIBATCH):
        order = groups_N[start:end].argsort(stable=True)
        groups_n = groups_N[start:end][order]
        outputs_VnM = run(sample.inputs_NM[start:end][order])
        if cosines is None or centered is None:
            num_experts = outputs_VnM.shape[0] - 1
            cosines, centered = (CosineSums(num_experts, num_groups, outputs_VnM.device) for _ in range(2))
        bounds = _bounds(groups_n, num_groups)
        experts_EnM = outputs_VnM[:-1]
        cosines.add(experts_EnM, bounds)
        centered.add(experts_EnM, bounds, experts_EnM.mean(dim=1, keepdim=True))
        if cka:
            given = groups_n.to(outputs_VnM.device) if num_groups else None
            average.add(hsic(outputs_VnM, given, num_groups, average.scratch))
        num_minibatches += 1
    assert cosines is not None and centered is not None
    return _comparison(average.finish() if cka else None, cosines, centered, groups_N, num_groups, num_minibatches)


def _exactly(
    run: Run, sample: InputsSample, groups_N: Tensor, num_groups: int, *, cka: bool, scratch: str | Path | None
) -> Comparison:
    order_N = groups_N.argsort(stable=True)
    groups_N, inputs_NM = groups_N[order_N], sample.inputs_NM[order_N]
    num_tokens, width = inputs_NM.shape
    file: OutputsFile | None = None
    try:
        for start in range(0, num_tokens, MINIBATCH):
            outputs_VnM = run(inputs_NM[start : start + MINIBATCH])
            device = outputs_VnM.device
            if file is None:
                file = OutputsFile(outputs_VnM.shape[0], num_tokens, width, scratch)
            file.write(start, outputs_VnM)
        assert file is not None
        given = groups_N.to(device) if num_groups else None
        hsic_VV = exact_hsic(file.outputs_VNM, given, num_groups, device=device) if cka else None
        experts_ENM = file.outputs_VNM[:-1]
        chunks = [slice(start, start + MINIBATCH) for start in range(0, num_tokens, MINIBATCH)]
        total_E1M = torch.zeros((experts_ENM.shape[0], 1, width), dtype=torch.float64)
        for chunk in chunks:
            total_E1M += experts_ENM[:, chunk].sum(dim=1, keepdim=True, dtype=torch.float32)
        cosines, centered = (CosineSums(experts_ENM.shape[0], num_groups, device) for _ in range(2))
        bounds = _bounds(groups_N, num_groups)
        cosines.add(experts_ENM, bounds)
        centered.add(experts_ENM, bounds, (total_E1M / num_tokens).float())
    except OverflowError as error:
        raise UsageError(
            "an expert's outputs exceed the range of half precision, in which they are stored on disk",
            remedy="use `estimator=minibatch`, which stores none",
        ) from error
    finally:
        if file is not None:
            file.close()
    return _comparison(hsic_VV, cosines, centered, groups_N, num_groups, 1)


def _bounds(groups_n: Tensor, num_groups: int) -> list[tuple[int, int]]:
    """First and last (exclusive) token of each group, of tokens in ascending order of group."""
    ends = torch.bincount(groups_n, minlength=max(1, num_groups)).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _comparison(
    terms: HSIC | None,
    cosines: CosineSums,
    centered: CosineSums,
    groups_N: Tensor,
    num_groups: int,
    num_minibatches: int,
) -> Comparison:
    measures = {}
    if terms is not None:
        debiased_VV, debiased_GVV = terms.cka()
        linear_VV, linear_GVV = terms.cka(biased=True)
        measures["cka"] = debiased_VV[:-1, :-1], debiased_GVV[:, :-1, :-1]
        measures["deconfounded_cka"] = terms.cka(given_last=True)
        measures["linear_cka"] = linear_VV[:-1, :-1], linear_GVV[:, :-1, :-1]
    measures["cosine"] = cosines.finish()
    measures["centered_cosine"] = centered.finish()
    present_G = torch.bincount(groups_N, minlength=max(1, num_groups))[:num_groups] > 0
    moved = {name: (whole.cpu(), without.cpu()) for name, (whole, without) in measures.items()}
    return Comparison(moved, present_G.cpu(), num_minibatches)
