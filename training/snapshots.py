"""Which snapshots stand at about 1, 10, 20 and 40 % of the training, for `moescope saturation --checkpoint …`."""

import json
from pathlib import Path

OUTPUT = Path(__file__).parent / "output"
SHARES = (0.01, 0.1, 0.2, 0.4)


def at_shares(work: Path = OUTPUT, shares: tuple[float, ...] = SHARES) -> dict[float, tuple[Path, int]]:
    """For each share of the tokens trained on: the first snapshot that has seen as many, and how many it has seen."""
    entries = [json.loads(line) for line in (work / "snapshots.jsonl").read_text().splitlines()]
    total = entries[-1]["tokens"]
    out = {}
    for share in shares:
        entry = next(e for e in entries if e["tokens"] >= share * total)
        out[share] = (work / "checkpoints" / f"step-{entry['step']:05d}", entry["tokens"])
    return out


if __name__ == "__main__":
    for path, _ in at_shares().values():
        print(path)
