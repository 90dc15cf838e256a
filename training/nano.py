"""From packages to weights in one command: `python -m training.nano`.

Each part is a module that also runs alone: the corpus and tokenizer (`training.corpus.build`), the training
(`training.train`, which goes on where it was stopped), the measures (`training.evaluate`), the card (`training.card`).
"""

import argparse
import subprocess
import sys
from pathlib import Path

from training.export import NANO

HERE = Path(__file__).parent


def main() -> None:
    """Run the parts in order; arguments go to the training."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Further arguments go to training.train.")
    parser.add_argument("--keep-corpus", action="store_true", help="use the corpus and tokenizer that are there")
    options, arguments = parser.parse_known_args()
    parts = [("train", arguments), ("export", []), ("evaluate", []), ("card", [])]
    if not options.keep_corpus:
        parts.insert(0, ("corpus.build", []))
    for name, extra in parts:
        print(f"training.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"training.{name}", *extra], check=True, cwd=HERE.parent)
    print(NANO)


if __name__ == "__main__":
    main()
