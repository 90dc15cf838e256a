"""Cut out of the training text whatever long run of characters a held-out document also contains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# Any odd number with well-mixed bits serves as the base of a polynomial hash modulo 2**64.
BASE = np.uint64(0x9E3779B97F4A7C15)
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))


def window_hashes(text: str, window: int) -> np.ndarray:
    """Hash every run of `window` characters.

    The hash of the characters c_i..c_{i+n-1} is `sum_k c_{i+k} BASE**k` modulo 2**64, from prefix sums; numpy's
    unsigned arithmetic wraps as needed.

    Args:
        text: Any text.
        window: Length of a run, in characters.

    Returns:
        One hash per run, `len(text) - window + 1` of them (none if the text is shorter).
    """
    if len(text) < window:
        return np.empty(0, np.uint64)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64) + np.uint64(1)
    # Characters are mixed first: small code points times powers of one base would collide more easily.
    codes *= np.uint64(0xBF58476D1CE4E5B9)
    codes ^= codes >> np.uint64(29)
    powers = np.ones(len(codes), np.uint64)
    powers[1:] = BASE
    np.multiply.accumulate(powers, out=powers)
    inverses = np.ones(len(codes), np.uint64)
    inverses[1:] = INVERSE
    np.multiply.accumulate(inverses, out=inverses)
    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.add.accumulate(codes * powers, out=prefix[1:])
    return (prefix[window:] - prefix[:-window]) * inverses[: len(codes) - window + 1]


class KnownRuns:
    """The runs of a fixed length that some texts contain.

    Most runs asked for are unknown. A table by the top bits of the hash says so at the cost of one look-up for nearly
    all of them, and only the others are searched for.
    """

    def __init__(self, texts: Iterable[str], window: int) -> None:
        """Collect the runs of `window` characters of the texts."""
        self.window = window
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *(window_hashes(t, window) for t in texts)]))
        bits = min(max((16 * len(self._hashes)).bit_length(), 8), 26)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._slots(self._hashes)] = True

    def found_in(self, text: str) -> np.ndarray:
        """Tell of each run of a text, by where it starts, whether it is known."""
        hashes = window_hashes(text, self.window)
        found = self._table[self._slots(hashes)]
        likely = np.flatnonzero(found)
        if len(likely):
            places = np.searchsorted(self._hashes, hashes[likely])
            found[likely] = self._hashes[np.minimum(places, len(self._hashes) - 1)] == hashes[likely]
        return found

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> self._shift).astype(np.int64)


def cut_runs(text: str, known: KnownRuns) -> list[str]:
    """Remove from a text every character that is part of a known run.

    Args:
        text: The text to cut.
        known: The runs of the texts to keep apart from.

    Returns:
        What is left, in order and otherwise unchanged. The pieces are not joined, since new runs could arise where
        they would meet.
    """
    found = known.found_in(text)
    if not found.any():
        return [text] if text else []
    # A character is cut if any of the `window` runs that cover it is known.
    changes = np.zeros(len(text) + 1, np.int64)
    starts = np.flatnonzero(found)
    np.add.at(changes, starts, 1)
    np.add.at(changes, starts + known.window, -1)
    kept = np.cumsum(changes[:-1]) == 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False])).astype(np.int8)))
    return [text[start:end] for start, end in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class SharedRun:
    """A run of characters that a held-out and a training text share."""

    held_out: int
    training: int
    length: int


def longest_shared_runs(held_out: Sequence[str], training: Sequence[str], window: int) -> list[SharedRun]:
    """Find shared runs of `window` characters or more, without hashes: an independent check of `cut_runs`.

    A run of `window` characters contains, wherever it starts, one whole block of half that length that starts at a
    multiple of that length in the held-out text. So the blocks are looked up at every position of the training text,
    and each hit is extended to both sides as far as the texts agree.

    Args:
        held_out: Texts that must share no run.
        training: Texts that are searched.
        window: Length of the shortest run that counts, in characters; at least 2.

    Returns:
        The runs found, at most one per held-out block and training position; empty if all is well.
    """
    size = window // 2
    blocks: dict[str, list[tuple[int, int]]] = {}
    for index, text in enumerate(held_out):
        for at in range(0, len(text) - size + 1, size):
            blocks.setdefault(text[at : at + size], []).append((index, at))
    found = []
    for number, text in enumerate(training):
        for position in range(len(text) - size + 1):
            for index, at in blocks.get(text[position : position + size], ()):
                other = held_out[index]
                left = right = 0
                while at > left and position > left and other[at - left - 1] == text[position - left - 1]:
                    left += 1
                while (
                    at + size + right < len(other)
                    and position + size + right < len(text)
                    and other[at + size + right] == text[position + size + right]
                ):
                    right += 1
                if left + size + right >= window:
                    found.append(SharedRun(index, number, left + size + right))
    return found
