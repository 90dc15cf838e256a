"""Draws the pictures of README and docs from the embedded model and corpus, as they are in the package.

    python docs/make_pictures.py

Each PNG holds the hash of the weights it was drawn from; `tests/architecture/test_pictures.py` fails when they are no
longer those of the package. The picture of router saturation needs the checkpoints of the training run: see
`training/card.py`.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

FOLDER = Path(__file__).parent / "images"
NUM_TOKENS = 100_000
KEY = "moescope-weights-sha256"


def weights_hash() -> str:
    """SHA-256 of the embedded model's weights."""
    weights = resources.files("moescope.models") / "nano" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def main() -> None:
    """Draws them all."""
    import moescope

    model, corpus = moescope.load_model("nano"), moescope.load_corpus("embedded")
    run = moescope.capture(model, corpus, analyses=["usage"], num_tokens=NUM_TOKENS)
    figures = {"specialists": run.figures["usage_specialists"], "information": run.figures["usage_information"]}
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", metadata={KEY: weights_hash()})


if __name__ == "__main__":
    main()
