"""HSIC of all pairs over all pairs of tokens: Gram matrices tile by tile, from outputs that may be on disk.

`V N M` outputs of 10,000 tokens, 64 experts and M = 2,048 take 2.6 GB in half precision, their Gram matrices 26 GB in
float32. Neither is ever in memory: outputs come from a memory-mapped file, a slab of tokens at a time, and of the Gram
matrices (the upper triangle alone) there is one tile of each at a time.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from moescope.measures.cka import HSIC, MIN_TOKENS, PairSums, Scratch, variables_at_a_time

TILE = 256
SLAB_BYTES = 640 * 2**20


class OutputsFile:
    """Outputs of V variables for N tokens, V x N x M, in half precision in a file that is deleted when it is closed.

    Each variable is divided by a power of two before it is stored, the one nearest to its first outputs' root mean
    square, so that the range of half precision suffices; neither CKA nor cosine changes.

    Args:
        num_variables: V.
        num_tokens: N.
        width: M.
        folder: Folder of the file; None for the system's temporary folder.

    Attributes:
        outputs_VNM: The file as a tensor, float16.

    Raises:
        OSError: The disk has no room for it.
    """

    def __init__(self, num_variables: int, num_tokens: int, width: int, folder: str | Path | None = None) -> None:
        self._file = tempfile.NamedTemporaryFile(dir=folder, prefix="outputs-", suffix=".float16")  # noqa: SIM115
        shape = (num_variables, num_tokens, width)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash when a page is written
            os.posix_fallocate(self._file.fileno(), 0, 2 * num_variables * num_tokens * width)
        self._map: np.memmap | None = np.memmap(self._file, dtype=np.float16, mode="w+", shape=shape)
        self.outputs_VNM = torch.from_numpy(self._map)
        self._scale_V: Tensor | None = None

    def write(self, start: int, outputs_VnM: Tensor) -> None:
        """Writes the outputs of tokens from `start` on.

        Raises:
            OverflowError: A number exceeds 60,000 times its expert's root mean square.
        """
        outputs_VnM = outputs_VnM.to("cpu", torch.float32)
        if self._scale_V is None:
            rms_V = outputs_VnM.square().mean(dim=(1, 2)).sqrt()
            self._scale_V = torch.exp2(-torch.where(rms_V > 0, rms_V, 1.0).log2().round())
        for variable, scale in enumerate(self._scale_V.tolist()):
            part_nM = (outputs_VnM[variable] * scale).half()
            if not bool(part_nM.isfinite().all()):
                raise OverflowError(f"outputs of variable {variable} do not fit half precision")
            self.outputs_VNM[variable, start : start + part_nM.shape[0]] = part_nM

    def close(self) -> None:
        """Deletes the file."""
        self.outputs_VNM = torch.empty(0)
        self._map = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Block:
    """Tokens of one group, side by side."""

    start: int
    end: int
    group: int

    @property
    def size(self) -> int:
        """Tokens in it."""
        return self.end - self.start


def exact_hsic(
    outputs_VNM: Tensor,
    groups_N: Tensor | None = None,
    num_groups: int = 0,
    *,
    tile: int = TILE,
    slab: int | None = None,
    device: torch.device | str | None = None,
) -> HSIC:
    """HSIC of all pairs of variables over all pairs of tokens, as `cka.hsic`, in bounded memory.

    Beside the outputs: V x slab x (M + tile) numbers. Products are in float32 (float64 for float64 outputs), sums of
    them in float64.

    Args:
        outputs_VNM: Outputs, any floating dtype; may be memory-mapped.
        groups_N: Which group of documents each token is of, ascending; None for no intervals.
        num_groups: G.
        tile: Most tokens on a side of a tile of the Gram matrices.
        slab: Tokens whose outputs are held while all later ones pass by; None: as many as fit in `SLAB_BYTES`.
        device: Where to compute; None: where the outputs are.

    Raises:
        ValueError: Fewer than 4 tokens, or groups not in ascending order.
    """
    num_variables, num_tokens, width = outputs_VNM.shape
    if num_tokens < MIN_TOKENS:
        raise ValueError(f"unbiased HSIC of {num_tokens} tokens; it takes {MIN_TOKENS}")
    device = torch.device(device) if device is not None else outputs_VNM.device
    dtype = torch.float64 if outputs_VNM.dtype == torch.float64 else torch.float32
    groups_N = None if groups_N is None else groups_N.to(device)
    sums = PairSums(num_variables, num_tokens, groups_N, num_groups, device)
    blocks = list(_blocks(sums.bounds or [(0, num_tokens)], tile))
    mean_V1M, towards_VMG = _centers(outputs_VNM, blocks, num_groups, dtype, device)
    slab = max(tile, slab if slab is not None else SLAB_BYTES // (4 * num_variables * (width + tile)))
    size = max(block.size for block in blocks)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    scratch = Scratch()

    def load(chunk: slice, block: _Block, out_vnM: Tensor) -> Tensor:
        return out_vnM.copy_(outputs_VNM[chunk, block.start : block.end]).sub_(mean_V1M[chunk])

    while blocks:
        held = [blocks[0], *(block for block in blocks[1:] if block.end - blocks[0].start <= slab)]
        outputs = {block: empty(num_variables, block.size, width) for block in held}
        buffers = [empty(num_variables * block.size * size) for block in held]
        for block, block_VnM in outputs.items():
            for chunk in variables_at_a_time(block_VnM.shape):
                part_vnM = load(chunk, block, block_VnM[chunk])
                sums.diagonal_VN[chunk, block.start : block.end] = part_vnM.square().sum(-1).double()
                if num_groups:
                    towards_vnG = part_vnM @ towards_VMG[chunk]
                    sums.towards_GVN[:, chunk, block.start : block.end] = towards_vnG.permute(2, 0, 1).double()
        for right in blocks:
            lefts = [block for block in held if block.start <= right.start]
            tiles = [
                buffer[: num_variables * left.size * right.size].view(num_variables, left.size, right.size)
                for left, buffer in zip(lefts, buffers, strict=False)
            ]
            # A few variables at a time, so that what was just read is multiplied while it is in the cache.
            for chunk in variables_at_a_time((num_variables, right.size, width)):
                if right in outputs:
                    part_vnM = outputs[right][chunk]
                else:
                    shape = (chunk.stop - chunk.start, right.size, width)
                    part_vnM = load(chunk, right, scratch.empty("passing", shape, mean_V1M, dtype))
                for left, tile_Vnn in zip(lefts, tiles, strict=True):
                    torch.bmm(outputs[left][chunk], part_vnM.mT, out=tile_Vnn[chunk])
            for left, tile_Vnn in zip(lefts, tiles, strict=True):
                _add_tile(sums, left, right, tile_Vnn)
        del blocks[: len(held)]
    return sums.finish()


def _blocks(bounds: list[tuple[int, int]], tile: int) -> Iterator[_Block]:
    """Groups cut into parts of at most `tile` tokens, nearly equal."""
    for group, (start, end) in enumerate(bounds):
        count = -(-(end - start) // tile)
        edges = [start + (end - start) * part // count for part in range(count + 1)] if count else []
        for low, high in itertools.pairwise(edges):
            yield _Block(low, high, group)


def _centers(
    outputs_VNM: Tensor, blocks: list[_Block], num_groups: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Each variable's mean output (V, 1, M), and the sum of each group's outputs around it (V, M, G)."""
    num_variables, num_tokens, width = outputs_VNM.shape
    total_VGM = torch.zeros((num_variables, max(1, num_groups), width), dtype=torch.float64, device=device)
    counts_G = torch.zeros(max(1, num_groups), dtype=torch.float64, device=device)
    for block in blocks:
        for chunk in variables_at_a_time((num_variables, block.size, width)):  # summing half precision makes a copy
            part_vnM = outputs_VNM[chunk, block.start : block.end].to(device)
            total_VGM[chunk, block.group] += part_vnM.sum(dim=1, dtype=dtype).double()
        counts_G[block.group] += block.end - block.start
    mean_V1M = total_VGM.sum(dim=1, keepdim=True) / num_tokens
    around_VGM = total_VGM - counts_G.view(1, -1, 1) * mean_V1M
    return mean_V1M.to(dtype), around_VGM.mT.to(dtype)


def _add_tile(sums: PairSums, left: _Block, right: _Block, tile_Vnn: Tensor) -> None:
    """Adds one tile of all Gram matrices to the sums; off the diagonal it stands for its mirror image too."""
    if left is right:
        tile_Vnn.diagonal(dim1=1, dim2=2).zero_()
    flat = tile_Vnn.flatten(1)
    products_VV = (flat @ flat.T).double()
    both_VV = products_VV if left is right else 2 * products_VV
    sums.all_VV += both_VV
    if not sums.bounds:
        return
    if left.group == right.group:
        sums.rows_GVV[left.group] += both_VV
        sums.inside_GVV[left.group] += both_VV
    else:
        sums.rows_GVV[left.group] += products_VV
        sums.rows_GVV[right.group] += products_VV
