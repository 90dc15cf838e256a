"""All-pairs debiased CKA of one layer's experts against the plain way, at the width of OLMoE: time and memory.

    uv run python -m benchmarks.similarity

Outputs are given (random, half precision), computing them is not timed. All work is in float32, on two
threads unless `--threads` says otherwise.

- plain: for each pair `|X^T Y|^2` on centered outputs, from which the unbiased HSIC follows; all outputs in memory;
  timed on `--pairs` random pairs and scaled to all E (E + 1) / 2 of them.
- exact: all pairs of tokens, Gram matrices tile by tile. minibatch: Gram matrices of 256 tokens, averaged.
- bare: the matrix products alone that exact and minibatch each stand for, on data that is in memory already.
  A minibatch's Gram matrices are whole here; ours multiplies their lower stripes only.
- with `--groups 20` also exact and minibatch with all that jackknife intervals need.

Times are taken in one process, the sides in turn, from outputs in memory (so that no side waits for the disk); how far
memory rises is seen in a fresh process for each side, from outputs in a mapped file.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import report
from moescope.measures.cka import HSIC, MinibatchHSIC, hsic, minibatches
from moescope.measures.cka_exact import TILE, exact_hsic

MINIBATCH = 256
NAMES = ["plain", "exact", "minibatch", "bare exact", "bare minibatch"]
WITH_INTERVALS = ["exact with intervals", "minibatch with intervals"]


def own_bytes() -> int:
    """Memory that is the process' own: pages of the mapped file, which go when others need room, do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no RssAnon in /proc/self/status")


class Peak:
    """The highest `own_bytes` seen while it is entered, every 5 ms, over what it was before."""

    def __enter__(self) -> Peak:
        self.before = self.highest = own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.highest = max(self.highest, own_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.highest = max(self.highest, own_bytes())

    @property
    def bytes(self) -> int:
        """How far it rose."""
        return self.highest - self.before


def plain(outputs_VNM: Tensor, num_pairs: int) -> float:
    """Seconds the plain way takes for all pairs, from those timed."""
    started = time.perf_counter()
    centered_VNM = outputs_VNM.float()
    for outputs_NM in centered_VNM:
        outputs_NM -= outputs_NM.mean(dim=0)
    norms_VN = torch.stack([outputs_NM.square().sum(-1) for outputs_NM in centered_VNM]).double()
    prepared = time.perf_counter() - started
    count, num_tokens = norms_VN.shape
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    chosen = random.Random(0).sample(pairs, min(num_pairs, len(pairs)))
    started = time.perf_counter()
    for i, j in chosen:
        products = float((centered_VNM[i].T @ centered_VNM[j]).square().sum(dtype=torch.float64))
        own = float(norms_VN[i] @ norms_VN[j])
        total = float(norms_VN[i].sum() * norms_VN[j].sum())
        _ = products - own - 2 * own / (num_tokens - 2) + total / ((num_tokens - 1) * (num_tokens - 2))
    return prepared + (time.perf_counter() - started) * len(pairs) / len(chosen)


def by_minibatches(outputs_VNM: Tensor, groups_N: Tensor | None = None, num_groups: int = 0) -> HSIC:
    """Minibatch CKA as `moescope.analyses.similarity.comparing` computes it."""
    average = MinibatchHSIC()
    for start, end in minibatches(outputs_VNM.shape[1], MINIBATCH):
        part_VnM = outputs_VNM[:, start:end]
        given = None if groups_N is None else groups_N[start:end].sort().values
        average.add(hsic(part_VnM, given, num_groups, average.scratch))
    return average.finish()


def bare_exact(shape: tuple[int, ...]) -> float:
    """Seconds of the upper triangle's Gram tiles and of the products of all pairs, on one slab over and over."""
    count, num_tokens, width = shape
    slab_VnM = torch.randn(count, min(num_tokens, 4 * TILE), width)
    sizes = [min(TILE, num_tokens - start) for start in range(0, num_tokens, TILE)]
    buffer = torch.empty(count * TILE * TILE)
    started = time.perf_counter()
    for first, rows in enumerate(sizes):
        for columns in sizes[first:]:
            out = buffer[: count * rows * columns].view(count, rows, columns)
            tile = torch.bmm(slab_VnM[:, :rows], slab_VnM[:, -columns:].mT, out=out).flatten(1)
            _ = tile @ tile.T
    return time.perf_counter() - started


def bare_minibatch(shape: tuple[int, ...]) -> float:
    """Seconds of the minibatches' Gram matrices and of the products of all pairs."""
    count, num_tokens, width = shape
    parts = minibatches(num_tokens, MINIBATCH)
    size = parts[0][1]
    outputs_VnM, gram = torch.randn(count, size, width), torch.empty(count, size, size)
    started = time.perf_counter()
    for _ in parts:
        torch.bmm(outputs_VnM, outputs_VnM.mT, out=gram)
        _ = gram.flatten(1) @ gram.flatten(1).T
    return time.perf_counter() - started


def mapped(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """The outputs, as they lie on the disk."""
    return torch.from_numpy(np.memmap(file, dtype=np.float16, mode="c", shape=shape))


def sides(outputs_VNM: Tensor, num_pairs: int, num_groups: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; one that gives a number gives its seconds itself."""
    shape = tuple(outputs_VNM.shape)
    groups_N = torch.from_numpy(np.random.default_rng(0).integers(0, max(1, num_groups), shape[1]))
    return {
        "plain": lambda: plain(outputs_VNM, num_pairs),
        "exact": lambda: exact_hsic(outputs_VNM),
        "minibatch": lambda: by_minibatches(outputs_VNM),
        "bare exact": lambda: bare_exact(shape),
        "bare minibatch": lambda: bare_minibatch(shape),
        "exact with intervals": lambda: exact_hsic(outputs_VNM, groups_N.sort().values, num_groups),
        "minibatch with intervals": lambda: by_minibatches(outputs_VNM, groups_N, num_groups),
    }


def timed(side: Callable[[], object]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    result = side()
    return result if isinstance(result, float) else time.perf_counter() - started


def main() -> None:
    """Prints one JSON line for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=32, help="pairs the plain way is timed on")
    parser.add_argument("--groups", type=int, default=0, help="groups of documents, for intervals")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="where the outputs' file lies")
    parser.add_argument("--side", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (options.experts, options.tokens, options.width)
    torch.randn(64, 64) @ torch.randn(64, 64)  # threads and buffers of the library are there before anything counts
    if options.side:
        side = sides(mapped(options.file, shape), options.pairs, options.groups)[options.side]
        with Peak() as peak:
            side()
        print(peak.bytes)
        return
    names = NAMES + (WITH_INTERVALS if options.groups else [])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "outputs.float16"
        written = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
        generator = np.random.default_rng(0)
        for expert in range(options.experts):
            written[expert] = generator.standard_normal(shape[1:], dtype=np.float32)
        del written
        peaks = {}
        for name in [name for name in names if "bare" not in name]:
            command = [sys.executable, "-m", "benchmarks.similarity", "--side", name, "--file", str(file)]
            for option in ("experts", "tokens", "width", "groups", "threads"):
                command += [f"--{option}", str(getattr(options, option))]
            child = subprocess.run([*command, "--pairs", "1"], capture_output=True, text=True, check=True)
            peaks[name] = float(child.stdout)
        all_sides = sides(mapped(file, shape).clone(), options.pairs, options.groups)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        all_sides["minibatch"]()
        for _ in range(options.repeats):
            for name in names:
                seconds[name].append(timed(all_sides[name]))
    facts = {"experts": shape[0], "tokens": shape[1], "width": shape[2], "threads": options.threads}
    for name in [name for name in names if name != "plain" and "bare" not in name]:
        own, bare = seconds[name], seconds[f"bare {name.split()[0]}"]
        report(f"plain over {name}, time", seconds["plain"], own, seconds=[round(value, 2) for value in own], **facts)
        report(f"{name} over its bare products, time", own, bare, **facts)
        line = {"name": f"{name} over plain, peak memory", "ratio": round(peaks[name] / peaks["plain"], 4)}
        sizes = {"mib": round(peaks[name] / 2**20), "plain_mib": round(peaks["plain"] / 2**20)}
        print(json.dumps(line | sizes | facts), flush=True)


if __name__ == "__main__":
    main()
