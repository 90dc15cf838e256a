"""Training text as batches: every domain has about the same number of tokens, every document stands alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.model import Batch


@dataclass
class Tokens:
    """The documents of one domain, end to end; each ends in the end-of-text token."""

    ids: np.ndarray  # uint16
    bounds: np.ndarray  # int64, where each document starts, and the length at the end


def load_tokens(parquet: Path, tokenizer_folder: Path, cache: Path) -> dict[str, Tokens]:
    """Read the training text as tokens per domain; cached, keyed by the content of text and tokenizer."""
    digest = hashlib.sha256(parquet.read_bytes() + (tokenizer_folder / "tokenizer.json").read_bytes()).hexdigest()[:16]
    target = cache / f"tokens-{digest}.npz"
    if not target.exists():
        import pyarrow.parquet as pq
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        table = pq.read_table(parquet, columns=["text", "domain"]).to_pandas()
        arrays: dict[str, np.ndarray] = {}
        for domain, rows in table.groupby("domain"):
            documents = tokenizer.backend_tokenizer.encode_batch_fast(rows["text"].tolist(), add_special_tokens=False)
            ids = [np.array([*d.ids, tokenizer.eos_token_id], dtype=np.uint16) for d in documents]
            arrays[f"{domain}/ids"] = np.concatenate(ids)
            arrays[f"{domain}/bounds"] = np.cumsum([0, *(len(i) for i in ids)])
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part.npz")
        np.savez(partial, **arrays)
        partial.replace(target)
    with np.load(target) as held:
        names = sorted({name.rsplit("/", 1)[0] for name in held.files})
        return {name: Tokens(held[f"{name}/ids"], held[f"{name}/bounds"]) for name in names}


class Windows:
    """An endless, seeded stream of windows of one domain, in a new order each epoch.

    A document longer than the window is cut into consecutive windows; the first is shortened at random, so that the
    cuts fall elsewhere each epoch.
    """

    def __init__(self, tokens: Tokens, length: int, seed: tuple[int, ...]) -> None:
        """Start at the first epoch; `seek` moves on."""
        self.tokens, self.length, self.seed = tokens, length, seed
        self.epoch, self.index = 0, 0
        self._plan()

    def _plan(self) -> None:
        generator = np.random.default_rng([*self.seed, self.length, self.epoch])
        windows = []
        for start, end in zip(self.tokens.bounds[:-1].tolist(), self.tokens.bounds[1:].tolist(), strict=True):
            if end - start > self.length:
                first = int(generator.integers(self.length // 4, self.length + 1))
                windows.append((start, start + first))
                start += first
            windows.extend((s, min(s + self.length, end)) for s in range(start, end, self.length))
        # a window of one token predicts nothing unless the document goes on
        order = generator.permutation(len(windows))
        self.windows = np.array(windows, dtype=np.int64)[order]
        self.ends = np.isin(self.windows[:, 1], self.tokens.bounds)

    def seek(self, epoch: int, index: int) -> None:
        """Go to where another stream of the same seed stood."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._plan()
        self.index = index

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """The next window's tokens and targets; -1 where the document ends."""
        if self.index == len(self.windows):
            self.seek(self.epoch + 1, 0)
        (start, end), ends = self.windows[self.index], self.ends[self.index]
        self.index += 1
        ids = self.tokens.ids[start:end].astype(np.int32)
        last = -1 if ends else self.tokens.ids[end]
        return ids, np.append(ids[1:], np.int32(last)).astype(np.int32)


class Sampler:
    """Draws batches. Windows stay whole: a domain that overdraws its share of a batch gets less in the next."""

    def __init__(self, domains: dict[str, Tokens], seed: int) -> None:
        """Set up the streams; they start when the first batch names its window length."""
        self.domains, self.seed = domains, seed
        self.names = sorted(domains)
        self.length = 0
        self.streams: dict[str, Windows] = {}
        self.credit = dict.fromkeys(self.names, 0)

    def _set_length(self, length: int) -> None:
        if length != self.length:
            self.length = length
            self.streams = {n: Windows(self.domains[n], length, (self.seed, i)) for i, n in enumerate(self.names)}

    def draw(self, length: int, tokens_per_domain: int, shards: int) -> list[Batch]:
        """One batch: windows of at most `length` tokens, cut into shards of about equal size, none of them empty."""
        self._set_length(length)
        windows: list[tuple[np.ndarray, np.ndarray]] = []
        while len(windows) < shards:  # all domains may have overdrawn their shares
            for name in self.names:
                self.credit[name] += tokens_per_domain
                while self.credit[name] > 0:
                    windows.append(self.streams[name].take())
                    self.credit[name] -= len(windows[-1][0])
        # long windows cost more per token (attention), so they are dealt first
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(shards)]
        sizes = [0] * shards
        for window in sorted(windows, key=lambda w: -len(w[0])):
            least = sizes.index(min(sizes))
            parts[least].append(window)
            sizes[least] += len(window[0])
        return [make_batch(part) for part in parts]

    def state(self) -> dict[str, object]:
        """Where the streams stand."""
        return {
            "length": self.length,
            "credit": dict(self.credit),
            "streams": {name: (s.epoch, s.index) for name, s in self.streams.items()},
            "sizes": {name: len(tokens.ids) for name, tokens in self.domains.items()},
        }

    def restore(self, state: dict) -> None:
        """Go to where another sampler of the same seed stood; domains whose text is another now start anew."""
        if state["length"]:
            self._set_length(state["length"])
        self.credit = dict(state["credit"])
        for name, (epoch, index) in state["streams"].items():
            if state["sizes"][name] == len(self.domains[name].ids):
                self.streams[name].seek(epoch, index)


def make_batch(windows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Put windows end to end."""
    join: Callable[[int], torch.Tensor] = lambda i: torch.from_numpy(np.concatenate([w[i] for w in windows]))  # noqa: E731
    lengths = torch.tensor([0, *(len(w[0]) for w in windows)])
    return Batch(join(0), join(1), lengths.cumsum(0).int())
