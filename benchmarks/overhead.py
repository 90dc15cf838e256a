"""What looking costs: capture with all router analyses over the bare forward pass of the same batches.

    uv run python -m benchmarks.overhead                      # nano: the worst case, a tiny model
    uv run python -m benchmarks.overhead --case olmoe-slice   # OLMoE-1B-7B's width, random weights, 2 layers, bfloat16
    uv run python -m benchmarks.overhead --case olmoe         # the whole OLMoE-1B-7B shape, for a GPU

The bare pass uses the fastest of the experts implementations that transformers has, which run in turn with ours. Where
predictions are read, the LM head runs on both sides. Text is tokenized and batched before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import moescope
from benchmarks.timing import alternate, report
from moescope.analyses import registry
from moescope.analyses.base import Context
from moescope.corpora import Batch, Sampler
from moescope.one_pass import feed

if TYPE_CHECKING:
    from moescope.models import MoEModel

# Not batched_mm: it copies each token's expert weights, and took 4 to 60 times as long as grouped_mm.
STOCK = ["eager", "grouped_mm"]


def olmoe_folder(parent: Path, num_layers: int) -> Path:
    """Saves a randomly initialized model of OLMoE-1B-7B's width, with nano's tokenizer."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = OlmoeForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    folder = parent / f"olmoe-{num_layers}-layers"
    model.save_pretrained(folder)
    moescope.load_model("nano", layers=[0]).tokenizer.save_pretrained(folder)
    return folder


def bare(model: MoEModel, batches: list[Batch], predictions: bool) -> Callable[[], None]:
    """The forward pass that any script would run: no mask, no cache, the head only where predictions are read."""
    network = model.hf if predictions else model.hf.base_model

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            output = network(input_ids=batch.input_ids_BS.to(model.device), use_cache=False)
            if predictions:
                output.logits.argmax(dim=-1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def looking(
    model: MoEModel, batches: list[Batch], corpus: moescope.corpora.Corpus, predictions: bool
) -> Callable[[], None]:
    """The same batches with every router analysis listening; accumulating is timed, finalizing is not."""
    context = Context(
        model=model, layers=model.layers, domains=corpus.domains, groups=corpus.groups, corpus_name=corpus.name,
        num_tokens=sum(batch.tokens.num_tokens for batch in batches), seed=0, predictions=predictions,
    )  # fmt: skip
    accumulators = {}
    for name in registry.names("router"):
        accumulators |= registry.find(name).statistics(context)

    def run() -> None:
        feed(model, batches, accumulators.values(), layers=model.layers)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def measure(
    name: str, model: MoEModel, cases: Sequence[str], *, num_tokens: int, batch_tokens: int, repeats: int
) -> None:
    """Prints a JSON line for each case: "router", or "predictions", which runs the LM head too."""
    corpus = moescope.load_corpus("embedded")
    sampler = Sampler(
        corpus, model.tokenizer, num_tokens=num_tokens, max_positions=model.max_positions, batch_tokens=batch_tokens
    )
    batches = list(sampler)
    ours = model.hf.get_experts_implementation()

    def using(implementation: str, run: Callable[[], None]) -> Callable[[], None]:
        def switched() -> None:
            model.hf.set_experts_implementation(implementation)
            run()

        return switched

    for case in cases:
        predictions = case == "predictions"
        plain, listening = bare(model, batches, predictions), looking(model, batches, corpus, predictions)
        floors = [using(implementation, plain) for implementation in STOCK]
        captured, *stock = alternate(using(ours, listening), *floors, repeats=repeats)
        medians = dict(zip(STOCK, map(statistics.median, stock), strict=True))
        fastest = min(STOCK, key=medians.__getitem__)
        report(
            f"overhead/{name}-{case}",
            captured,
            stock[STOCK.index(fastest)],
            num_tokens=num_tokens,
            fastest=fastest,
            slowest_over_fastest=round(max(medians.values()) / medians[fastest], 3),
            device=str(model.device),
        )
    model.hf.set_experts_implementation(ours)


def main() -> None:
    """Measures and prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["nano", "olmoe-slice", "olmoe"], default="nano")
    parser.add_argument("--num-tokens", type=int)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["router", "predictions"], help="one of the two cases")
    arguments = parser.parse_args()
    cases = [arguments.only] if arguments.only else ["router", "predictions"]
    sizes = {"batch_tokens": arguments.batch_tokens, "repeats": arguments.repeats}
    if arguments.case == "nano":
        measure("nano", moescope.load_model("nano"), cases, num_tokens=arguments.num_tokens or 20_000, **sizes)
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = olmoe_folder(Path(parent), num_layers=2 if arguments.case == "olmoe-slice" else 16)
        tokens = arguments.num_tokens or (4_000 if arguments.case == "olmoe-slice" else 100_000)
        measure(arguments.case, moescope.load_model(str(folder)), cases, num_tokens=tokens, **sizes)


if __name__ == "__main__":
    main()
