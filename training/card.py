"""Write nano's model card from what was measured: every number in it comes from a file or is computed here."""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, OlmoeForCausalLM

from training.evaluate import HELD_OUT, NANO

OUTPUT = Path(__file__).parent / "output"


def table(frame: pd.DataFrame) -> str:
    """A markdown table; numbers are formatted by the caller."""
    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + "|".join(" --- " for _ in frame.columns) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(str(v) for v in row) + " |" for row in frame.to_numpy())])


def loss_curve(log: pd.DataFrame, target: Path) -> str:
    """Draw the training loss and learning rate; return a short table of the same."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.8, 2.6), layout="constrained")
    millions = log["tokens"] / 1e6
    axes.plot(millions, log["loss"], color="0.75", linewidth=0.5)
    axes.plot(millions, log["loss"].rolling(21, center=True, min_periods=1).median(), color="#0072B2", linewidth=1.2)
    axes.set(
        xlabel="training tokens (millions)", ylabel="loss (nats per token)", ylim=(None, min(7.0, log["loss"].max()))
    )
    right = axes.twinx()
    right.plot(millions, log["rate"], color="#D55E00", linewidth=0.8)
    right.set_ylabel("learning rate", color="#D55E00")
    right.set_ylim(0, None)
    figure.savefig(target, dpi=150, metadata={"Software": None})
    plt.close(figure)
    rows = []
    for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
        until = share * log["tokens"].iloc[-1]
        part = log[(log["tokens"] <= until) & (log["tokens"] > 0.9 * until)]
        if len(part):
            rows.append((f"{until / 1e6:.1f} M", f"{part['loss'].mean():.3f}", f"{part['rate'].iloc[-1]:.1e}"))
    return table(pd.DataFrame(rows, columns=["training tokens", "loss (nats per token)", "learning rate"]))


def plateaus(log: pd.DataFrame) -> str:
    """The learning rates held constant, and until when."""
    held = [(rate, part["tokens"].iloc[-1]) for rate, part in log.groupby("rate", sort=False) if len(part) >= 10]
    return ", then ".join(f"{rate:.1e} until {tokens / 1e6:.1f} million tokens" for rate, tokens in held)


@torch.inference_mode()
def samples(folder: Path, held_out: pd.DataFrame, seed: int = 0) -> str:
    """The start of a held-out document of each domain and how nano goes on."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = OlmoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parts = []
    for domain, rows in held_out.groupby("domain"):
        text = rows["text"].iloc[0]
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :24]
        torch.manual_seed(seed)
        out = model.generate(ids, max_new_tokens=64, do_sample=True, temperature=0.7, top_p=0.9, top_k=0)
        prompt, rest = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[0], out[0, ids.shape[1] :]))
        quoted = "\n".join(f"    {line}" for line in f"{prompt}⟫{rest}".splitlines())
        parts.append(f"**{domain}**\n\n{quoted}")
    return "\n\n".join(parts)


def norm_gains(folder: Path) -> list[float]:
    """Mean absolute weight of the norm before each layer's router and experts."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = sorted(
            (name for name in weights.keys() if name.endswith("post_attention_layernorm.weight")),  # noqa: SIM118
            key=lambda name: int(name.split(".")[2]),
        )
        return [weights.get_tensor(name).float().abs().mean().item() for name in names]


def saturation(folder: Path) -> str:
    """Figure and table of `moescope saturation` on this run's snapshots, where they were made; a column for each."""
    path = OUTPUT / "saturation" / "tables" / "saturation.csv"
    if not path.exists():
        return "Not measured for this version."
    frame = pd.read_csv(path)
    share = frame["share_of_training_percent"].round().astype(int)
    parts = [
        frame.assign(column=[f"{rank}, {s} %" for s in share]).pivot_table(name, "layer", "column", sort=False)
        for name, rank in (("topk_saturation", "top-8"), ("top1_saturation", "top-1"))
    ]
    wide = pd.concat(parts, axis=1)
    wide.loc["mean"] = wide.mean()
    chance, chance1 = frame["topk_saturation_chance"].iloc[0], frame["top1_saturation_chance"].iloc[0]
    shutil.copyfile(path.parents[1] / "figures" / "saturation_by_layer.png", folder / "saturation.png")
    return (
        "![Router saturation by layer](saturation.png)\n\n"
        f"By percent of training; {frame['num_tokens'].iloc[0]:,} held-out tokens; chance is {chance:.3f} and "
        f"{chance1:.3f}."
        "\n\n" + table(wide.map("{:.2f}".format).reset_index())
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=NANO)
    folder = parser.parse_args().folder
    measured = json.loads((folder / "evaluation.json").read_text())
    held_out = pd.read_parquet(HELD_OUT)
    log = pd.read_json(OUTPUT / "train.jsonl", lines=True)
    config = json.loads((folder / "config.json").read_text())
    # a source reads "package version: document"; the documents are in the corpus itself
    packages = held_out.assign(source=held_out["source"].str.split(": ").str[0])
    licences = packages.groupby("domain")[["source", "licence"]].agg(lambda column: ", ".join(sorted(set(column))))
    domains = pd.DataFrame(measured["domains"]).T
    domains["ratio"] = domains["bits_per_byte"] / domains["xz_bits_per_byte"]
    bits = pd.DataFrame(
        {
            "domain": domains.index,
            "documents": domains["documents"].astype(int),
            "tokens": [f"{n:,.0f}" for n in domains["tokens"]],
            "bits per byte": [f"{v:.3f}" for v in domains["bits_per_byte"]],
            "xz -9e": [f"{v:.3f}" for v in domains["xz_bits_per_byte"]],
            "ratio": [f"{v:.2f}" for v in domains["ratio"]],
            "pairs with lift ≥ 5": [measured["pairs_with_lift_of_5_by_domain"][n] for n in domains.index],
        }
    )
    gains = norm_gains(folder)
    layers = pd.DataFrame(
        {
            "layer": range(config["num_hidden_layers"]),
            "gain before the experts": [f"{v:.2f}" for v in gains],
            "least load": [f"{v:.2%}" for v in measured["load_min"]],
            "greatest load": [f"{v:.2%}" for v in measured["load_max"]],
            "excess mutual information (bits)": [f"{v:.3f}" for v in measured["mutual_information_excess_bits"]],
        }
    )
    even = 1 / config["num_experts"]
    data = licences.reset_index()[["domain", "source", "licence"]]
    means = measured["mean"]
    curve = loss_curve(log, folder / "loss.png")
    last = log.iloc[-1]
    experts = config["num_hidden_layers"] * config["num_experts"]
    text = f"""\
# nano

A Mixture-of-Experts language model of the OLMoE architecture with OLMoE-1B-7B's topology (16 layers, 64 experts,
top-8, no shared expert, query and key norms, weights not renormalized) at toy width: hidden size
{config["hidden_size"]}, expert width {config["intermediate_size"]}, {config["num_attention_heads"]} heads,
{config["vocab_size"]:,} tokens, tied embeddings, 14.8 million parameters. It is made to be looked into: small enough to
ship with moescope and to run on a laptop, real enough that its experts specialize. Weights are stored in bfloat16 and
meant to be computed in float32. `OlmoeForCausalLM` loads this folder.

## Data

22 domains; every batch holds about as many tokens of each. The held-out documents embedded in moescope come from the
same sources; they were not trained on, nor was any run of 200 characters that one of them contains.

{table(data)}

The weights are published under Apache-2.0. The texts keep their own licences; ATTRIBUTION.md lists them.

## Training

{last["tokens"] / 1e6:.1f} million tokens in {int(last["step"]):,} steps on two CPU cores, {last["seconds"] / 60:.0f}
minutes. AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradient norm at most 1. Learning rate, after a warm-up:
{plateaus(log)}; then linear to 1 % of that over the
last 30 %. Batches of 2,816 tokens at first, of 11,264 at the end. Each document stands alone: nothing is prepended and
none sees another. Windows grow from 256 over 512 to 1,024 tokens. Matrix products in bfloat16; sums, router and
parameters in float32. The load-balancing loss is computed per layer, then averaged; a small z-loss keeps router logits
near zero. `training/` in the repository reproduces it with one command.

![Training loss](loss.png)

{curve}

## Bits per byte on held-out documents

Each document is read alone, in float32; its first token, which has no context, counts as 13 bits (a uniform guess);
documents longer than {measured["window"]:,} tokens are read in windows {measured["stride"]} tokens apart, and each
token is counted once. xz: `xz -9e` of the domain's documents joined. Mean over domains: {means["bits_per_byte"]:.3f}
against {means["xz_bits_per_byte"]:.3f}, {measured["mean_ratio"]:.2f} of it.

{table(bits)}

The last column counts (layer, expert) pairs with at least 0.5 % of their layer's assignments whose lift in the domain
is at least 5, with a 95 % interval that excludes 3. In all, {measured["pairs_with_lift_of_5"]} pairs have such a
domain.

## Load balance and specialization

Share of a layer's assignments on the held-out documents; {even:.2%} would be even. Experts below 0.1 %:
{measured["experts_below_one_in_a_thousand"]} of {experts:,}. The mutual information is between expert and domain, less
its mean when the documents' labels are shuffled; {measured["layers_with_excess_of_0.15_bits"]} of
{config["num_hidden_layers"]} layers have 0.15 bits or more.

The gain is the mean absolute weight of the norm that scales what router and experts are given. Training turned it down
in layer {min(range(len(gains)), key=gains.__getitem__)}: there the router's scores are nearly equal, so which experts
it chooses hangs on little, and the experts add little.

{table(layers)}

## Router saturation

Share of a token's experts that a checkpoint and the final model have in common.

{saturation(folder)}

## Samples

The first 24 tokens of a held-out document, ⟫, and how nano goes on (temperature 0.7, nucleus 0.9, one seed, not
chosen).

{samples(folder, held_out)}

## What it can't do

It knows the form of its 22 kinds of text and next to nothing of the world: it states nothing reliably, follows no
instructions, and does not reason or calculate. It has seen English, a little of four other languages in one narrow
kind of text each, and sequences of at most 1,024 tokens. What its experts do says how such a model can divide its work,
not how a large model does. Old texts carry their time's prejudices, and so may what it writes.
"""
    (folder / "README.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
