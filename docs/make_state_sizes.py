"""Writes docs/state.md: the memory that the counts and samples of each question take.

    python docs/make_state_sizes.py

Nothing is run or allocated: each accumulator is declared for models of several sizes, and says what it would take.
"""

from __future__ import annotations

from pathlib import Path

from moescope.analyses import registry
from moescope.analyses.sizes import state_bytes, total_bytes
from moescope.context import Context, ModelInfo
from moescope.results.text import size

TARGET = Path(__file__).parent / "state.md"

# E, K, L, V, D: of the sizes of OLMoE, Qwen3-30B-A3B, DeepSeek-V3, and a larger one; then many domains.
SIZES = [
    (64, 8, 16, 50_304, 22),
    (128, 8, 48, 151_936, 22),
    (256, 8, 58, 129_280, 22),
    (512, 10, 60, 200_000, 22),
    (512, 10, 60, 200_000, 1000),
]
NUM_TOKENS = 100_000

HEAD = """# Memory of a pass

What the questions of `moescope report` accumulate in memory beside the model, for 100,000 tokens and by the number of
experts of a layer (E), experts per token (K), MoE layers (L), vocabulary (V) and domains (D). The state does not grow
with the text: more tokens take no more, but for samples that they fill. What questions share is in the row of each and
once in the total. `moescope info` prints the same of a model, for the layers that you name; a run whose state does not
fit into the memory that is free is refused before any text is read.

This page is written by `docs/make_state_sizes.py`.

"""

FOOT = """
Counts of token types by expert (`vocabulary`, `overlap`, `profile`) take at most 1 GiB for each reading of a token. Up
to that they are a table of all cells; of a larger model they are a list of the cells that are not 0, of which a CPU's
memory holds only what the tokens fill. As long as the list has room for all, results are the same bits. A token makes K
cells at most in each layer, so that {tokens:,} tokens always fit at E = 512, and usually many more. Beyond, types with
the largest ids are pooled: they count in loads, and are left out of averages over types, of top tokens and of the
vocabularies compared; a warning gives their share of the tokens. Which types are pooled depends on the whole text
alone, not on how it was divided or in what order it was merged.

`usage`, `entropy` and `contribution` grow with the number of domains.
"""


def context(num_experts: int, num_ranks: int, num_layers: int, vocab_size: int, num_domains: int) -> Context:
    """A run of a report on a model of these sizes."""
    model = ModelInfo(
        name="", revision=None, family="", config_hash="", dtype="bfloat16", device="meta", num_experts=num_experts,
        num_experts_per_token=num_ranks, num_shared_experts=0, model_width=4096, expert_width=1024,
        vocab_size=vocab_size, scoring="softmax", selects_by="", complete=True, tokenizer=None,
    )  # fmt: skip
    return Context(
        model=model, layers=tuple(range(num_layers)), domains=tuple(map(str, range(num_domains))), groups={},
        corpus_name="", num_tokens=NUM_TOKENS, seed=0, predictions=True,
    )  # fmt: skip


def page() -> str:
    """The page's text."""
    names = registry.names()
    heads, columns = [], []
    for sizes in SIZES:
        taken = state_bytes([registry.find(name, in_report=True) for name in names], context(*sizes))
        heads.append(", ".join(f"{name} = {value:,}" for name, value in zip("EKLVD", sizes, strict=True)))
        columns.append([*(sum(taken[name].values()) for name in names), total_bytes(taken)])
    lines = ["| question | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(SIZES)]
    for name, *row in zip([*names, "**all together**"], *columns, strict=True):
        lines.append(f"| {name} | " + " | ".join(size(num_bytes) if num_bytes else "–" for num_bytes in row) + " |")
    num_experts, num_ranks, num_layers, vocab_size, _ = SIZES[-1]
    from moescope.statistics import cells
    from moescope.statistics.type_counts import MAX_BYTES

    room = cells.num_cells(num_layers, MAX_BYTES, vocab_size, num_experts) // num_ranks
    return HEAD + "\n".join(lines) + "\n" + FOOT.format(tokens=room // 1000 * 1000)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
