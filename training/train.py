"""Train nano: warm-up, a constant rate, a decay to near zero over the last part of a budget of tokens or of minutes.

Until the decay starts the budget may change, on resuming or by `control.json` beside the checkpoints (`{"minutes": 85}`
or `{"tokens": 30000000}`, read before every step). Minutes are those spent in steps: a process that is stopped and
continued, or killed and resumed, loses nothing. While there is a file `PAUSE` beside the checkpoints no step begins.
"""

import argparse
import json
import os
import signal
import sys
import time
from bisect import bisect
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training.data import Sampler, load_tokens
from training.engines import KernelEngine, StockEngine
from training.export import save_model
from training.kernels import available
from training.model import make_config

HERE = Path(__file__).parent


@dataclass
class Recipe:
    """What decides the result, besides text and seed."""

    rate: float = 3e-3
    warmup_steps: int = 100
    decay_from: float = 0.7  # progress
    final_rate: float = 0.01  # of `rate`
    balance: float = 0.01
    z_loss: float = 0.001
    load_memory: float = 0.9  # of the running mean of expert loads that the balance loss sees
    # (from this progress on, longest window, tokens of each domain in a batch)
    stages: tuple[tuple[float, int, int], ...] = (
        (0.0, 256, 128), (0.1, 256, 192), (0.5, 512, 256), (0.75, 1024, 384),
    )  # fmt: skip
    seed: int = 0

    def rate_at(self, step: int, progress: float) -> float:
        """The learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (1.0 - progress) / (1.0 - self.decay_from)
        return self.rate * min(warm, max(self.final_rate, min(1.0, left)))

    def stage_at(self, progress: float) -> tuple[int, int]:
        """Window length and tokens per domain."""
        return next((length, tokens) for start, length, tokens in reversed(self.stages) if progress >= start)


@dataclass
class Budget:
    """When the training ends: the first limit reached."""

    minutes: float = 0.0
    tokens: int = 0

    def progress(self, seconds: float, tokens: int) -> float:
        """0 at the start, 1 at the end."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        by_tokens = tokens / self.tokens if self.tokens else 0.0
        return min(1.0, max(by_time, by_tokens))


class Training:
    """The state of a run, its steps, and its checkpoints."""

    def __init__(self, engine: KernelEngine | StockEngine, sampler: Sampler, recipe: Recipe, shards: int = 2) -> None:
        """Start from the engine's parameters."""
        self.engine, self.sampler, self.recipe, self.shards = engine, sampler, recipe, shards
        self.steps, self.tokens, self.seconds = 0, 0, 0.0
        config = engine.config
        even = config.num_experts_per_tok / config.num_experts
        # The balance loss sees loads over about the last ten batches: one batch is too few tokens for 64 experts, and
        # balance within little text works against specialization
        self.load_LE = torch.full((config.num_hidden_layers, config.num_experts), even)

    def step(self, progress: float) -> dict[str, float]:
        """One optimizer step; returns what the log wants to know."""
        began = time.monotonic()
        length, share = self.recipe.stage_at(progress)
        batches = self.sampler.draw(length, share, self.shards)
        rate = self.recipe.rate_at(self.steps, progress)
        loss, counts_LE, norm = self.engine.step(batches, rate, self.load_LE, self.recipe.balance, self.recipe.z_loss)
        num_tokens = sum(len(b.ids_T) for b in batches)
        self.load_LE.lerp_(counts_LE / num_tokens, 1 - self.recipe.load_memory)
        self.steps += 1
        self.tokens += num_tokens
        # A step is never minutes long: that was a stopped process
        self.seconds += min(time.monotonic() - began, 20.0)
        return {"loss": loss, "rate": rate, "gradient_norm": norm}

    def save(self, path: Path) -> None:
        """Write a checkpoint; whoever reads sees the old one or the new one."""
        state = {
            "engine": self.engine.state(), "sampler": self.sampler.state(), "load": self.load_LE,
            "recipe": asdict(self.recipe),
            "steps": self.steps, "tokens": self.tokens, "seconds": self.seconds,
        }  # fmt: skip
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.engine.load_state(state["engine"])
        self.sampler.restore(state["sampler"])
        self.load_LE = state["load"]
        self.steps, self.tokens, self.seconds = state["steps"], state["tokens"], state["seconds"]


def expert_norm_gains(weights: dict[str, torch.Tensor]) -> list[float]:
    """Mean absolute gain of the norm before the experts, by layer."""
    return [w.abs().mean().item() for name, w in weights.items() if name.endswith("post_attention_layernorm.weight")]


def rewind(folder: Path, steps: int) -> None:
    """Drop from the logs what a killed process did after its last checkpoint: it will be done again."""
    for path in (folder / "train.jsonl", folder / "snapshots.jsonl"):
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
            if kept != lines:
                path.write_text("".join(kept))


def run(
    training: Training,
    budget: Budget,
    folder: Path,
    *,
    save_every: float = 180.0,
    log_every: int = 10,
    snapshots: int = 40,
) -> None:
    """Train to the end of the budget, or until SIGTERM or Ctrl-C, which save first."""
    folder.mkdir(parents=True, exist_ok=True)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.append(signum))
    checkpoint, control = folder / "checkpoint.pt", folder / "control.json"
    saved, window = time.monotonic(), [training.seconds, training.tokens]
    losses: list[float] = []
    marks = sorted({0.01, *(i / snapshots for i in range(1, snapshots + 1))})
    passed = bisect(marks, budget.progress(training.seconds, training.tokens))
    rewind(folder, training.steps)
    while True:
        while (folder / "PAUSE").exists() and not stop:
            time.sleep(1.0)
        if control.exists():
            for name, value in json.loads(control.read_text()).items():
                setattr(budget, name, value)
        progress = budget.progress(training.seconds, training.tokens)
        if bisect(marks, progress) > passed:
            passed = bisect(marks, progress)
            save_model(
                training.engine.weights(), training.engine.config, folder / "checkpoints" / f"step-{training.steps:05d}"
            )
            with (folder / "snapshots.jsonl").open("a") as file:
                print(json.dumps({"step": training.steps, "tokens": training.tokens, "progress": progress}), file=file)
        if progress >= 1.0 or stop:
            break
        losses.append((entry := training.step(progress))["loss"])
        if training.steps % log_every == 0:
            load_LE = training.load_LE / training.load_LE.sum(-1, keepdim=True)
            record = entry | {
                "step": training.steps, "tokens": training.tokens, "seconds": round(training.seconds, 1),
                "progress": round(progress, 5), "loss": sum(losses) / len(losses),
                "tokens_per_second": round((training.tokens - window[1]) / (training.seconds - window[0])),
                "load_min": [round(v, 5) for v in load_LE.amin(-1).tolist()],
                "load_max": [round(v, 5) for v in load_LE.amax(-1).tolist()],
                "gain": [round(v, 4) for v in expert_norm_gains(training.engine.weights())],
                "engine": training.engine.name,
            }  # fmt: skip
            with (folder / "train.jsonl").open("a") as file:
                print(json.dumps(record), file=file)
            losses, window = [], [training.seconds, training.tokens]
        if time.monotonic() - saved > save_every:
            training.save(checkpoint)
            saved = time.monotonic()
    training.save(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="budget, minutes spent in steps")
    parser.add_argument("--tokens", type=int, default=0, help="budget, training tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=Recipe.rate, help="peak learning rate")
    parser.add_argument("--balance", type=float, default=Recipe.balance, help="coefficient of the balance loss")
    parser.add_argument("--shards", type=int, default=2, help="threads that train, each on its part of the batch")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--stock", action="store_true", help="train the stock model although the kernels would run")
    parser.add_argument("--fresh", action="store_true", help="start anew although there is a checkpoint")
    parser.add_argument("--out", type=Path, default=HERE / "output", help="where checkpoints and the log go")
    options = parser.parse_args()
    budget = Budget(options.minutes, options.tokens or (0 if options.minutes else 40_000_000))
    recipe = Recipe(rate=options.rate, balance=options.balance, seed=options.seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    config = make_config()
    nano = HERE.parent / "src" / "moescope" / "models" / "nano"
    domains = load_tokens(HERE / "output" / "corpus" / "train.parquet", nano, HERE / "output")
    sampler = Sampler(domains, recipe.seed)
    if device == "cpu" and available() and not options.stock:
        torch.set_num_threads(1)  # the shards are the threads
        engine: KernelEngine | StockEngine = KernelEngine(config, recipe.seed, options.shards)
        training = Training(engine, sampler, recipe, options.shards)
    else:
        training = Training(StockEngine(config, recipe.seed, device), sampler, recipe, 1)
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.fresh:
        training.load(checkpoint)
    run(training, budget, options.out)


if __name__ == "__main__":
    # glibc gives large buffers back to the system and fetches them anew each step unless told not to
    if "MALLOC_MMAP_MAX_" not in os.environ:
        os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
        os.execv(sys.executable, [sys.executable, "-m", "training.train", *sys.argv[1:]])
    main()
