"""What profiles of all experts cost: one pass with everything in them, tables and files, over the bare forward pass.

    uv run python -m benchmarks.profiles
    uv run python -m benchmarks.profiles --apart      # seconds of what is left out of the ratio

The bare pass is that of `benchmarks.overhead`, with the LM head, whose predictions profiles read. Neighbors and
effects come from samples of fixed size, whatever the number of tokens: they are timed apart. Text is tokenized and
batched before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import moescope
from benchmarks.overhead import STOCK, bare
from benchmarks.timing import alternate, report
from moescope.analyses.base import Context
from moescope.analyses.profile.analysis import Profile
from moescope.corpora import Sampler
from moescope.one_pass import feed


def main() -> None:
    """Measures and prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tokens", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--apart", action="store_true")
    arguments = parser.parse_args()
    model, corpus = moescope.load_model("nano"), moescope.load_corpus("embedded")
    batches = list(Sampler(corpus, model.tokenizer, num_tokens=arguments.num_tokens, max_positions=model.max_positions))
    ours = model.hf.get_experts_implementation()
    plain = bare(model, batches, predictions=True)
    facts: dict[str, float] = {}

    def profile(neighbors: bool = False, effects: bool = False) -> None:
        model.hf.set_experts_implementation(ours)
        analysis = Profile(neighbors=neighbors, effects=effects)
        context = Context(
            model=model, layers=model.layers, domains=corpus.domains, groups=corpus.groups, corpus_name=corpus.name,
            num_tokens=arguments.num_tokens, seed=0, predictions=True, corpus_fingerprint=corpus.fingerprint,
        )  # fmt: skip
        accumulators = analysis.statistics(context)
        started = time.perf_counter()
        feed(model, batches, accumulators.values(), layers=model.layers)
        facts["pass_seconds"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
        written = dict(analysis.files(analysis.table(accumulators, context), context))
        facts["finishing_seconds"] = round(time.perf_counter() - started, 2)
        facts["file_bytes"] = sum(map(len, written.values()))
        facts["state_bytes"] = sum(accumulator.nbytes() for accumulator in accumulators.values())

    if arguments.apart:
        for options in ({}, {"neighbors": True}, {"effects": True}):
            profile(**options)
            print(json.dumps({"name": "profiles/nano-finishing", **options, **facts}), flush=True)
        return

    def floor(implementation: str) -> None:
        model.hf.set_experts_implementation(implementation)
        plain()

    ours_seconds, *stock = alternate(
        profile, *(lambda name=name: floor(name) for name in STOCK), repeats=arguments.repeats
    )
    fastest = min(stock, key=statistics.median)
    report(
        "profiles/nano-all", ours_seconds, fastest, num_tokens=arguments.num_tokens,
        fastest=STOCK[stock.index(fastest)], bare_seconds=round(statistics.median(fastest), 2), **facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
