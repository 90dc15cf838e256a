"""Similarity of experts' outputs on the same tokens: HSIC of all pairs at once, and the CKA that follows from it.

Every expert i gives a Gram matrix `K_i = X_i X_i^T` of its N x M outputs. With column-centered outputs (which changes
neither estimator), `d_i` the diagonal of `K_i` and `K'_i` the matrix with zeros there, rows of `K'_i` sum to `-d_i` and
both estimators need only `P_ij = <K'_i, K'_j>` and `<d_i, d_j>`:

    biased    HSIC_ij = (P_ij + <d_i, d_j>) / (N - 1)^2                                   (Gretton et al. 2005)
    unbiased  HSIC_ij = (P_ij - 2 <d_i, d_j> / (N - 2) + |d_i| |d_j| / ((N - 1) (N - 2))) / (N (N - 3))
                                                                                          (Song et al. 2012, HSIC_1)

with `|d|` a sum. `P` of all pairs is one matrix product of the flattened Gram matrices. CKA is `HSIC_ij / sqrt(HSIC_ii
HSIC_jj)`: with the biased one linear CKA (Kornblith et al. 2019), with the unbiased one debiased CKA.

Names here end in V, the variables compared: the experts and, for deconfounded CKA, the layer's inputs as the last one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TOKENS = 4
"""Fewest tokens that the unbiased estimator is defined for."""

_CHUNK_BYTES = 8 * 2**20
"""Centered outputs held at a time: they should still be in the cache when they are multiplied."""
_STRIPES = 4
"""Parts of a Gram matrix, which is symmetric."""


@dataclass
class HSIC:
    """HSIC of all pairs of V variables, from all tokens and without each of G groups of documents.

    Attributes:
        biased_VV, unbiased_VV: From all tokens, float64; averages over minibatches, if there were several.
        biased_GVV, unbiased_GVV: Without each group; G is 0 where no groups were given.
        num_tokens_G: Tokens of each group, int64.
        num_tokens: N.
        num_minibatches: How many were averaged.
    """

    biased_VV: Tensor
    unbiased_VV: Tensor
    biased_GVV: Tensor
    unbiased_GVV: Tensor
    num_tokens_G: Tensor
    num_tokens: int
    num_minibatches: int = 1

    def cka(self, *, biased: bool = False, given_last: bool = False) -> tuple[Tensor, Tensor]:
        """CKA of all pairs, (V, V), and without each group, (G, V, V), float64.

        Args:
            biased: Linear CKA instead of the debiased one.
            given_last: Deconfounded CKA: before comparing, the last variable's centered Gram matrix is regressed out of
                the others', `HSIC_ij - HSIC_ix HSIC_jx / HSIC_xx` in all three terms (Cui et al. 2022, who regress the
                Gram matrices before centering them; after it, the intercept is regressed out too). V is one less.

        Returns:
            NaN where a variable does not vary.
        """
        whole_VV, without_GVV = (self.biased_VV, self.biased_GVV) if biased else (self.unbiased_VV, self.unbiased_GVV)
        if given_last:
            whole_VV, without_GVV = _given_last(whole_VV), _given_last(without_GVV)
        return _normalized(whole_VV), _normalized(without_GVV)


def _given_last(hsic_xVV: Tensor) -> Tensor:
    """HSIC among the others after the last variable's Gram matrix was regressed out."""
    with_last_xV1, last_x11 = hsic_xVV[..., :-1, -1:], hsic_xVV[..., -1:, -1:]
    explained_xVV = with_last_xV1 * with_last_xV1.mT / last_x11
    remainder_xVV = hsic_xVV[..., :-1, :-1] - torch.where(last_x11 > 0, explained_xVV, 0.0)
    # The remainder of a variable that is a multiple of the last one is rounding error, without direction.
    own_xV = remainder_xVV.diagonal(dim1=-2, dim2=-1)
    rounding_xV = own_xV <= 1e-6 * hsic_xVV.diagonal(dim1=-2, dim2=-1)[..., :-1]
    return torch.where(rounding_xV.unsqueeze(-1) | rounding_xV.unsqueeze(-2), torch.nan, remainder_xVV)


def _normalized(hsic_xVV: Tensor) -> Tensor:
    own_xV = hsic_xVV.diagonal(dim1=-2, dim2=-1)
    scale_xV = torch.where(own_xV > 0, own_xV, torch.nan).sqrt()
    return hsic_xVV / (scale_xV.unsqueeze(-1) * scale_xV.unsqueeze(-2))


class Scratch:
    """Memory that is reused: fresh pages for every minibatch would take a considerable part of the products' time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor with arbitrary content, valid until the same name is requested again."""
        size, buffer = math.prod(shape), self._buffers.get(name)
        if buffer is None or buffer.numel() < size or (buffer.dtype, buffer.device) != (dtype, like.device):
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=like.device)
        return buffer[:size].view(*shape)


def hsic(
    outputs_VNM: Tensor, groups_N: Tensor | None = None, num_groups: int = 0, scratch: Scratch | None = None
) -> HSIC:
    """HSIC of all pairs on one set of tokens, from whole Gram matrices: V N^2 numbers in memory beside the outputs.

    Products are in float32 (float64 for float64 outputs), sums of them in float64.

    Args:
        outputs_VNM: Each variable's outputs for the same N tokens, any floating dtype.
        groups_N: Which group of documents each token is of, int64, ascending; None for no intervals.
        num_groups: G.
        scratch: Memory to work in, where there are many minibatches: `MinibatchHSIC.scratch`.

    Raises:
        ValueError: Fewer than `MIN_TOKENS` tokens, or groups not in ascending order.
    """
    num_variables, num_tokens, width = outputs_VNM.shape
    if num_tokens < MIN_TOKENS:
        raise ValueError(f"unbiased HSIC of {num_tokens} tokens; it takes {MIN_TOKENS}")
    dtype = torch.float64 if outputs_VNM.dtype == torch.float64 else torch.float32
    scratch = scratch or Scratch()
    gram_VNN = scratch.empty("gram", (num_variables, num_tokens, num_tokens), outputs_VNM, dtype)
    sums = PairSums(num_variables, num_tokens, groups_N, num_groups, outputs_VNM.device)
    for chunk in variables_at_a_time(outputs_VNM.shape):
        shape = (chunk.stop - chunk.start, num_tokens, width)
        part_vNM = scratch.empty("outputs", shape, outputs_VNM, dtype).copy_(outputs_VNM[chunk])
        part_vNM -= part_vNM.mean(dim=1, keepdim=True)
        _gram(part_vNM, gram_VNN[chunk])
        if sums.bounds:
            towards_vGM = torch.stack([part_vNM[:, first:last].sum(dim=1) for first, last in sums.bounds], dim=1)
            sums.towards_GVN[:, chunk] = (part_vNM @ towards_vGM.mT).permute(2, 0, 1).double()
    sums.diagonal_VN.copy_(gram_VNN.diagonal(dim1=1, dim2=2))
    gram_VNN.diagonal(dim1=1, dim2=2).zero_()
    if not sums.bounds:
        flat = gram_VNN.flatten(1)
        sums.all_VV += (flat @ flat.T).double()
    for group, (first, last) in enumerate(sums.bounds):
        if last > first:
            rows = gram_VNN[:, first:last].flatten(1)  # rows of a variable lie side by side
            inside = gram_VNN[:, first:last, first:last].flatten(1)
            sums.rows_GVV[group] += (rows @ rows.T).double()
            sums.inside_GVV[group] += (inside @ inside.T).double()
    sums.all_VV += sums.rows_GVV.sum(0)
    return sums.finish()


def _gram(outputs_vNM: Tensor, gram_vNN: Tensor) -> None:
    """Writes each variable's Gram matrix: a stripe of rows times the tokens up to them, the rest is the mirror image.

    With four stripes, 5/8 of the products of whole matrices, in 0.78 of their time (256 tokens, M = 2,048, two cores).
    """
    num_tokens = outputs_vNM.shape[1]
    edges = [num_tokens * stripe // _STRIPES for stripe in range(_STRIPES + 1)]
    for start, end in itertools.pairwise(edges):
        gram_vNN[:, start:end, :end] = outputs_vNM[:, start:end] @ outputs_vNM[:, :end].mT
        gram_vNN[:, :start, start:end] = gram_vNN[:, start:end, :start].mT


def variables_at_a_time(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the V variables of (V, N, M) outputs that are small enough to stay in the cache."""
    num_variables, num_tokens, width = shape
    step = max(1, _CHUNK_BYTES // (4 * max(1, num_tokens * width)))
    for start in range(0, num_variables, step):
        yield slice(start, min(num_variables, start + step))


class PairSums:
    """Sums over Gram matrices, computed whole or tile by tile, from which HSIC of all pairs follows.

    Attributes:
        diagonal_VN: Diagonals of `K_i`.
        all_VV: `P`, sums over all pairs of different tokens of `K_i K_j`.
        rows_GVV: The same over pairs whose first token is of the group.
        inside_GVV: Over pairs with both tokens of the group.
        towards_GVN: Each token's sum of `K_i` over the group's tokens, for tokens that are not of the group.
        bounds: First and last (exclusive) token of each group.
    """

    def __init__(
        self,
        num_variables: int,
        num_tokens: int,
        groups_N: Tensor | None,
        num_groups: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_tokens = num_tokens
        if groups_N is None:
            groups_N, num_groups = torch.zeros(num_tokens, dtype=torch.int64, device=device), 0
        elif bool((groups_N[1:] < groups_N[:-1]).any()):
            raise ValueError("tokens are not in ascending order of group")
        counts = torch.bincount(groups_N, minlength=num_groups)[:num_groups]
        ends = counts.cumsum(0).tolist()
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
        self.num_tokens_G = counts
        pairs = (num_groups, num_variables, num_variables)
        zeros = {"dtype": torch.float64, "device": device}
        self.diagonal_VN = torch.zeros((num_variables, num_tokens), **zeros)  # type: ignore[call-overload]
        self.all_VV = torch.zeros(pairs[1:], **zeros)  # type: ignore[call-overload]
        self.rows_GVV = torch.zeros(pairs, **zeros)  # type: ignore[call-overload]
        self.inside_GVV = torch.zeros(pairs, **zeros)  # type: ignore[call-overload]
        self.towards_GVN = torch.zeros((num_groups, num_variables, num_tokens), **zeros)  # type: ignore[call-overload]

    def finish(self) -> HSIC:
        """HSIC from the sums."""
        biased_VV, unbiased_VV = _estimates(self.all_VV, -self.diagonal_VN, self.diagonal_VN)
        biased, unbiased = torch.zeros_like(self.rows_GVV), torch.zeros_like(self.rows_GVV)
        for group, (start, end) in enumerate(self.bounds):
            products_VV = self.all_VV - 2 * self.rows_GVV[group] + self.inside_GVV[group]
            sums_VN = -self.diagonal_VN - self.towards_GVN[group]
            remaining = [
                torch.cat([values[:, :start], values[:, end:]], dim=1) for values in (sums_VN, self.diagonal_VN)
            ]
            biased[group], unbiased[group] = _estimates(products_VV, *remaining)
        return HSIC(biased_VV, unbiased_VV, biased, unbiased, self.num_tokens_G, self.num_tokens)


def _estimates(products_VV: Tensor, row_sums_VN: Tensor, diagonal_VN: Tensor) -> tuple[Tensor, Tensor]:
    """Biased and unbiased HSIC of all pairs; for outputs whose columns need not sum to 0.

    Args:
        products_VV: `<K'_i, K'_j>`.
        row_sums_VN: Row sums of `K'_i`.
        diagonal_VN: Diagonals of `K_i`.
    """
    count = diagonal_VN.shape[1]
    if count < MIN_TOKENS:
        nothing = torch.full_like(products_VV, torch.nan)
        return nothing, nothing
    sums_V = row_sums_VN.sum(1)
    full_VN = row_sums_VN + diagonal_VN
    full_V = full_VN.sum(1)
    biased_VV = products_VV + diagonal_VN @ diagonal_VN.T
    biased_VV = biased_VV - 2 / count * (full_VN @ full_VN.T) + torch.outer(full_V, full_V) / count**2
    unbiased_VV = products_VV - 2 / (count - 2) * (row_sums_VN @ row_sums_VN.T)
    unbiased_VV = unbiased_VV + torch.outer(sums_V, sums_V) / ((count - 1) * (count - 2))
    return biased_VV / (count - 1) ** 2, unbiased_VV / (count * (count - 3))


def minibatches(num_tokens: int, size: int = 256) -> list[tuple[int, int]]:
    """First and last (exclusive) token of each minibatch, all of nearly equal size, as near to `size` as possible."""
    count = max(1, round(num_tokens / size))
    ends = [num_tokens * index // count for index in range(count + 1)]
    return list(itertools.pairwise(ends))


class MinibatchHSIC:
    """Averages HSIC over minibatches: minibatch CKA divides averages, it does not average CKA (Nguyen et al. 2021).

    The unbiased estimator stays unbiased however small the minibatch; the biased one keeps a minibatch's bias.

    Attributes:
        scratch: Memory for `hsic` of one minibatch after the other.
    """

    def __init__(self) -> None:
        self.scratch = Scratch()
        self._sums: HSIC | None = None
        self._counts_G: Tensor | None = None

    def add(self, part: HSIC) -> None:
        """Takes in one minibatch; all must have the same variables and groups."""
        known_G = part.unbiased_GVV.flatten(1).isfinite().any(1)  # else too few tokens are left without that group
        biased_GVV, unbiased_GVV = (
            torch.where(known_G.view(-1, 1, 1), values, 0.0) for values in (part.biased_GVV, part.unbiased_GVV)
        )
        if self._sums is None or self._counts_G is None:
            self._sums = HSIC(
                part.biased_VV, part.unbiased_VV, biased_GVV, unbiased_GVV, part.num_tokens_G, part.num_tokens
            )
            self._counts_G = known_G.long()
            return
        sums = self._sums
        self._counts_G = self._counts_G + known_G
        self._sums = HSIC(
            sums.biased_VV + part.biased_VV,
            sums.unbiased_VV + part.unbiased_VV,
            sums.biased_GVV + biased_GVV,
            sums.unbiased_GVV + unbiased_GVV,
            sums.num_tokens_G + part.num_tokens_G,
            sums.num_tokens + part.num_tokens,
            sums.num_minibatches + 1,
        )

    def finish(self) -> HSIC:
        """The averages.

        Raises:
            ValueError: There was no minibatch.
        """
        if self._sums is None or self._counts_G is None:
            raise ValueError("no minibatch to average over")
        sums, count, count_G = self._sums, self._sums.num_minibatches, self._counts_G.view(-1, 1, 1)
        return HSIC(
            sums.biased_VV / count,
            sums.unbiased_VV / count,
            sums.biased_GVV / count_G,
            sums.unbiased_GVV / count_G,
            sums.num_tokens_G,
            sums.num_tokens,
            count,
        )
