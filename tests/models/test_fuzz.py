"""Checkpoints with one thing wrong in one file: each loads or is refused, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import build, save
from tests.models.quantizing import quantize_fp8

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    save(build("qwen3_moe"), folder / "whole")
    save(build("olmoe"), folder / "sharded", max_shard_size="15KB")
    quantize_fp8(save(build("deepseek_v3"), folder / "fp8"), 16)
    return folder


@pytest.mark.parametrize(("seed", "count"), [(0, 18), pytest.param(1, 500, marks=pytest.mark.slow)])
def test_every_mutant_loads_or_is_refused(bases: Path, seed: int, count: int) -> None:
    # In a process of its own: memory is measured, and what hangs is ended.
    run = subprocess.run(
        [sys.executable, "-m", "tests.models.mutants", str(bases), str(seed), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=3600,  # of a machine that others use too; see the limit of processor time
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == count, run.stderr[-3000:]
    for row in rows:
        assert row["result"] == "works" or row["result"].startswith("refused: "), f"{row['what']}\n{row['result']}"
        assert row["seconds"] < 30, row
        assert row["grown"] < 2**30, row
    refused = sum(row["result"].startswith("refused") for row in rows)
    assert refused > count // 4
    assert refused < count
