"""What recording costs, and how fast recordings of others are read.

    uv run python -m benchmarks.traces                        # nano: recording a trace over capture of usage alone
    uv run python -m benchmarks.traces --case import --megabytes 1000   # JSON Lines of vLLM's: token-layers per second

Recording is timed with all that is written; of usage the pass and its accumulating, as the other benchmarks do. The
import states the memory that it adds to the process beside the file's size: it must not grow with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import moescope
from benchmarks.timing import alternate, report
from moescope.analyses import registry
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.one_pass import feed

LAYERS, EXPERTS, RANKS, TOKENS = 16, 64, 8, 600
"""OLMoE-1B-7B's routing, in responses of a few hundred tokens."""


def recording(num_tokens: int, repeats: int) -> None:
    """Prints the ratio of recording a trace to capturing usage alone, on nano."""
    model, corpus = moescope.load_model("nano"), moescope.load_corpus("embedded")

    def usage() -> None:
        context = Context(
            model=model.info, layers=model.layers, domains=corpus.domains, groups=corpus.groups,
            corpus_name=corpus.name, num_tokens=num_tokens, seed=0, predictions=False,
        )  # fmt: skip
        statistics = registry.find("usage").statistics(context)
        sampler = Sampler(corpus, model.tokenizer, num_tokens=num_tokens, max_positions=model.max_positions)
        feed(model, sampler, statistics.values(), layers=model.layers)

    with tempfile.TemporaryDirectory() as parent:
        out = Path(parent) / "trace"

        def record() -> None:
            shutil.rmtree(out, ignore_errors=True)
            moescope.record_trace(model, corpus, out, num_tokens)

        traced, captured = alternate(record, usage, repeats=repeats)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    report(
        "traces/nano", traced, captured, num_tokens=num_tokens, bytes_per_token=round(size / num_tokens),
        device=str(model.device),
    )  # fmt: skip


def responses(num_bytes: int) -> Iterator[str]:
    """Lines as a client of vLLM would save them, until they have this size."""
    draw = np.random.default_rng(0)
    number = written = 0
    while written < num_bytes:
        scores = draw.random((TOKENS, LAYERS, EXPERTS), dtype=np.float32)
        table = np.argpartition(-scores, RANKS, axis=2)[..., :RANKS]
        record: dict[str, Any] = {
            "id": f"request-{number}",
            "domain": ("chat", "code", "web")[number % 3],
            "prompt_token_ids": draw.integers(0, 50_000, TOKENS // 2).tolist(),
            "choices": [
                {
                    "token_ids": draw.integers(0, 50_000, TOKENS - TOKENS // 2 + 1).tolist(),
                    "routed_experts": table.tolist(),
                }
            ],
        }
        line = json.dumps(record) + "\n"
        written, number = written + len(line), number + 1
        yield line


def importing(megabytes: int) -> None:
    """Prints token-layers per second of an import, and the memory that it adds."""
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "responses.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(responses(megabytes * 10**6))
        process = psutil.Process()
        before, most = process.memory_info().rss, 0

        def watch(_: int) -> None:
            nonlocal most
            most = max(most, process.memory_info().rss)

        started, busy = time.perf_counter(), time.process_time()
        trace = moescope.import_trace(path, Path(parent) / "trace", format="vllm", progress=watch)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        line: dict[str, Callable[[], Any] | Any] = {
            "name": "traces/import-vllm",
            "megabytes": round(path.stat().st_size / 1e6),
            "token_layers": trace.facts.num_tokens * LAYERS,
            "token_layers_per_second": round(trace.facts.num_tokens * LAYERS / seconds),
            "token_layers_per_processor_second": round(trace.facts.num_tokens * LAYERS / busy),
            "added_memory_megabytes": round((most - before) / 1e6),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Measures and prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["record", "import"], default="record")
    parser.add_argument("--num-tokens", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.case == "import":
        importing(arguments.megabytes)
    else:
        recording(arguments.num_tokens, arguments.repeats)


if __name__ == "__main__":
    main()
