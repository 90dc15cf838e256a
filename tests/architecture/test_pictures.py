"""Pictures of README and docs are of the model in the package."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image  # noqa: F401  (Pillow comes with matplotlib)
import pytest
from docs.make_pictures import FOLDER, KEY, weights_hash
from PIL import Image

PICTURES = sorted(path for path in FOLDER.glob("*.png") if path.stem != "saturation")


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_of_the_embedded_weights(path: Path) -> None:
    assert Image.open(path).info.get(KEY) == weights_hash(), f"run python docs/make_pictures.py: {path.name} is old"


def test_there_are_pictures() -> None:
    assert len(PICTURES) >= 2
