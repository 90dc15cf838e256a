"""Measure a checkpoint on the held-out documents: bits per byte beside xz, load balance, specialization.

Bits per byte of a domain: bits of all its documents' tokens / UTF-8 bytes of its documents. Each document is read
alone, in float32, nothing is prepended: its first token has no context, and counts as log2(vocabulary) bits, a uniform
guess. Documents longer than a window of 1,024 tokens are read in windows that start 512 tokens apart; each token is
counted in the first window that holds it, so it has at least 512 tokens of context where the document has them.
End-of-text is not counted.

xz: the size of the domain's documents, joined without separator, as `xz -9e` writes them.
"""

import argparse
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from transformers import AutoTokenizer, OlmoeForCausalLM

ROOT = Path(__file__).parent.parent
NANO = ROOT / "src" / "moescope" / "models" / "nano"
HELD_OUT = ROOT / "src" / "moescope" / "corpora" / "embedded" / "held_out.parquet"
WINDOW, STRIDE = 1024, 512
BATCH_TOKENS = 8192


def windows_of(document: int, length: int) -> list[tuple[int, int, int, int]]:
    """(document, start, end, first token that counts) of each window."""
    out, counted, start = [], 0, 0
    while counted < length:
        end = min(start + WINDOW, length)
        out.append((document, start, end, counted))
        counted, start = end, start + STRIDE
    return out


@torch.inference_mode()
def read(model: OlmoeForCausalLM, documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Bits of each document, and how often each expert was chosen: (document, layer, expert)."""
    config = model.config
    layers, experts, chosen = config.num_hidden_layers, config.num_experts, config.num_experts_per_tok
    bits = np.zeros(len(documents))
    counts_NLE = np.zeros((len(documents), layers, experts), dtype=np.int64)
    todo = [w for i, d in enumerate(documents) for w in windows_of(i, len(d))]
    todo.sort(key=lambda w: w[1] - w[2])
    while todo:
        size = max(1, BATCH_TOKENS // (todo[0][2] - todo[0][1]))
        part, todo = todo[:size], todo[size:]
        rows = [torch.tensor(documents[d][start:end]) for d, start, end, _ in part]
        # Right padding: under a causal model nothing real sees it
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        out = model(input_ids=ids, output_router_logits=True, use_cache=False)
        logits = out.logits[:, :-1].flatten(0, 1)
        nats = functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        nats = nats.view(len(part), -1).cpu().double()
        picked = [z.reshape(*ids.shape, experts).topk(chosen).indices.cpu() for z in out.router_logits]
        for row, (d, start, end, counted) in enumerate(part):
            low, high = counted - start, end - start
            bits[d] += nats[row, max(low - 1, 0) : high - 1].sum().item() / math.log(2)
            bits[d] += math.log2(config.vocab_size) if counted == 0 else 0.0
            for layer, ids_BTK in enumerate(picked):
                counts_NLE[d, layer] += np.bincount(ids_BTK[row, low:high].flatten().numpy(), minlength=experts)
    return bits, counts_NLE


def mutual_information(counts_XE: np.ndarray) -> np.ndarray:
    """Bits, over the last two axes."""
    p = counts_XE / counts_XE.sum((-2, -1), keepdims=True)
    independent = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log2(p / independent), 0.0).sum((-2, -1))


def specialization(counts_NLE: np.ndarray, domain_N: np.ndarray, seed: int = 0) -> dict[str, object]:
    """Load balance, excess mutual information, and the (layer, expert) pairs with a strong lift."""
    generator = np.random.default_rng(seed)
    documents, layers, experts = counts_NLE.shape
    names = np.unique(domain_N)
    label = np.searchsorted(names, domain_N)
    flat = counts_NLE.reshape(documents, -1).astype(np.float64)

    def by_domain(weight_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
        one_hot_DN = np.zeros((len(names), documents))
        one_hot_DN[label_N, np.arange(documents)] = weight_N
        return (one_hot_DN @ flat).reshape(len(names), layers, experts)

    def lift_of(counts_DLE: np.ndarray) -> np.ndarray:
        share_DLE = counts_DLE / counts_DLE.sum(-1, keepdims=True)
        return share_DLE / share_DLE.mean(0)

    ones = np.ones(documents)
    counts_DLE = by_domain(ones, label)
    value_L = mutual_information(counts_DLE.transpose(1, 0, 2))
    null_RL = [mutual_information(by_domain(ones, generator.permutation(label)).transpose(1, 0, 2)) for _ in range(50)]
    excess_L = value_L - np.mean(null_RL, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = np.stack([lift_of(by_domain(generator.poisson(1.0, documents), label)) for _ in range(200)])
        low_DLE = np.nanquantile(replicates, 0.025, axis=0)
        lift_DLE = lift_of(counts_DLE)
    load_LE = counts_NLE.sum(0) / counts_NLE.sum((0, 2))[:, None]
    strong_DLE = (lift_DLE >= 5) & (low_DLE > 3) & (load_LE >= 0.005)
    return {
        "load_min": load_LE.min(-1).tolist(),
        "load_max": load_LE.max(-1).tolist(),
        "experts_below_one_in_a_thousand": int((load_LE < 0.001).sum()),
        "mutual_information_excess_bits": excess_L.tolist(),
        "layers_with_excess_of_0.15_bits": int((excess_L >= 0.15).sum()),
        "pairs_with_lift_of_5": int(strong_DLE.any(0).sum()),
        "pairs_with_lift_of_5_by_domain": {str(n): int(c) for n, c in zip(names, strong_DLE.sum((1, 2)), strict=True)},
    }


def evaluate(folder: Path, held_out: Path, device: str = "cpu", limit: int | None = None) -> dict[str, object]:
    """All measures of one checkpoint.

    Args:
        folder: The checkpoint.
        held_out: Parquet with `text` and `domain`.
        device: Where to compute.
        limit: Read only so many documents of each domain (a quick look).

    Returns:
        What `evaluation.json` holds.
    """
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = OlmoeForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    model.set_experts_implementation("grouped_mm")
    table = pd.read_parquet(held_out, columns=["text", "domain"])
    if limit:
        table = table.groupby("domain").head(limit)
    documents = [tokenizer.encode(text, add_special_tokens=False) for text in table["text"]]
    bits, counts_NLE = read(model, documents)
    table = table.assign(bits=bits, tokens=[len(d) for d in documents], size=[len(t.encode()) for t in table["text"]])
    domains = {}
    for name, rows in table.groupby("domain"):
        data = "".join(rows["text"]).encode()
        packed = len(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME))
        domains[str(name)] = {
            "documents": len(rows),
            "tokens": int(rows["tokens"].sum()),
            "bytes": len(data),
            "bits_per_byte": rows["bits"].sum() / len(data),
            "xz_bits_per_byte": 8 * packed / len(data),
        }
    ratios = {n: d["bits_per_byte"] / d["xz_bits_per_byte"] for n, d in domains.items()}
    means = {key: float(np.mean([d[key] for d in domains.values()])) for key in ("bits_per_byte", "xz_bits_per_byte")}
    return {
        "window": WINDOW, "stride": STRIDE, "domains": domains, "mean": means,
        "mean_ratio": means["bits_per_byte"] / means["xz_bits_per_byte"],
        "mean_of_ratios": float(np.mean(list(ratios.values()))),
        "worst_ratio": max(ratios.items(), key=lambda item: item[1]),
        **specialization(counts_NLE, table["domain"].to_numpy()),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=NANO)
    parser.add_argument("--held-out", type=Path, default=HELD_OUT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="documents per domain, for a quick look")
    parser.add_argument("--out", type=Path, help="default: evaluation.json in the folder")
    options = parser.parse_args()
    result = evaluate(options.folder, options.held_out, options.device, options.limit)
    for name, d in result["domains"].items():
        model, xz = d["bits_per_byte"], d["xz_bits_per_byte"]
        print(f"{name:32} {model:.3f}  xz {xz:.3f}  {model / xz:.2f}")
    print(json.dumps({k: v for k, v in result.items() if k != "domains"}))
    (options.out or options.folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
