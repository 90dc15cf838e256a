"""Simulates how often intervals hold the true value and writes the table into docs/metrics.md.

python -m docs.make_coverage
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.simulations import Coverage, effect_coverage, lift_coverage, rank_correlation_held, share_coverage

PAGE = Path(__file__).parent / "metrics.md"
MARKS = "<!-- coverage -->\n", "<!-- /coverage -->"
DOCUMENTS = (8, 12, 30, 100)
NUM_CORPORA = 4000
NUM_CORRELATIONS = 400
FEWEST_KNOWN = 100


def cell(found: Coverage) -> str:
    """Coverage, and the share of corpora without an interval where there are such."""
    known = found.num_corpora * (1 - found.refused)
    held = f"{found.held:.3f}" if known >= FEWEST_KNOWN else "–"
    return held if found.refused < 0.0005 else f"{held} ({100 * found.refused:.0f} % refused)"


def table() -> str:
    """Rows of measures, columns of numbers of documents."""
    rows: list[tuple[str, Callable[[int], Coverage]]] = []
    for name, measure in (("share", share_coverage), ("lift 3 against 1", lift_coverage)):
        for share in (0.125, 0.01):
            for tails in ("light", "lognormal"):

                def simulate(n: int, measure: Callable = measure, share: float = share, tails: str = tails) -> Coverage:
                    return measure(share, tails, n, NUM_CORPORA)

                rows.append((f"{name}, expert of {100 * share:g} % of tokens, {tails} tails", simulate))
    for kind in ("light", "lognormal", "both signs", "one in ten"):
        tails = {"both signs": "lognormal tails of both signs", "one in ten": "one document in ten carries it"}

        def effect(n: int, kind: str = kind) -> Coverage:
            return effect_coverage(kind, n, NUM_CORPORA)

        rows.append((f"Δ loss, {tails.get(kind, f'{kind} tails')}", effect))
    lines = ["| interval | " + " | ".join(f"{n} documents" for n in DOCUMENTS) + " |", "|---" * 5 + "|"]
    lines += [f"| {name} | " + " | ".join(cell(simulate(n)) for n in DOCUMENTS) + " |" for name, simulate in rows]
    common = (0.0, 0.3, 0.6)
    held = [np.mean([rank_correlation_held(share, seed) for seed in range(NUM_CORRELATIONS)]) for share in common]
    lines += [
        "",
        "Rank correlations within domains, where 0, 30 and 60 % of the variance are an expert's in all domains (8 "
        "domains, 32 experts; interval over "
        f"experts): {', '.join(f'{value:.3f}' for value in held)} of {NUM_CORRELATIONS}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replaces the table."""
    text = PAGE.read_text()
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    PAGE.write_text(text[:start] + table() + text[end:])


if __name__ == "__main__":
    main()
