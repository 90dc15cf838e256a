"""Results folders with one thing wrong in one file."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

VALUES: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 10**30, 1.5, float("nan"), float("inf"), "", "x", "é" * 50, "../outside",
    "<script>alert(1)</script>", "\x1b[31m", [], [1, 2], ["a"], [[[[]]]], {}, {"a": 1}, "9" * 5000, [0] * 20_000,
]  # fmt: skip


def mutate(folder: Path, draw: random.Random) -> str:
    """Changes one thing in a results folder; returns what."""
    kind = draw.choice([_json, _json, _json, _bytes, _bytes, _table, _table, _table, _place])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return f"{kind.__name__}: {kind(folder, files, draw)}"


def _json(folder: Path, files: list[Path], draw: random.Random) -> str:
    path = folder / draw.choice(["manifest.json", "manifest.json", "findings.json"])
    tree = json.loads(path.read_text("utf-8"))
    holder, key = draw.choice(list(_entries(tree)))
    if draw.random() < 0.25:
        del holder[key]
        what = "deleted"
    else:
        holder[key] = draw.choice(VALUES)
        what = str(holder[key])[:60]
    path.write_text(json.dumps(tree), "utf-8")
    return f"{path.name} {key}: {what}"


def _entries(tree: Any) -> Any:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _entries(value)


def _bytes(folder: Path, files: list[Path], draw: random.Random) -> str:
    """Cuts a file, or overwrites some of it: headers and footers more often than what lies between."""
    path = draw.choice([file for file in files if file.suffix in (".json", ".parquet", ".png", ".safetensors", ".csv")])
    data = bytearray(path.read_bytes())
    how = draw.choice(["empty", "cut", "head", "tail", "anywhere", "doubled"])
    if how == "empty":
        data = bytearray()
    elif how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "doubled":
        data = data + data
    else:
        spans = {"head": range(min(64, len(data))), "tail": range(max(0, len(data) - 64), len(data))}
        span = spans.get(how, range(len(data)))
        for _ in range(draw.choice([1, 4, 16])):
            data[draw.choice(span)] = draw.randrange(256)
    path.write_bytes(data)
    return f"{path.name} {how}"


def _table(folder: Path, files: list[Path], draw: random.Random) -> str:
    path = draw.choice([file for file in files if file.suffix == ".parquet"])
    frame = pd.read_parquet(path)
    column = draw.choice(list(frame.columns))
    change = draw.choice(["drop", "text", "missing", "infinite", "no rows", "twice", "rename", "lists", "negative"])
    if change == "drop":
        frame = frame.drop(columns=column)
    elif change == "no rows":
        frame = frame.iloc[:0]
    elif change == "twice":
        frame = pd.concat([frame, frame])
    elif change == "rename":
        frame = frame.rename(columns={column: "</script>"})
    else:
        values = {"text": "x" * 10_000, "missing": None, "infinite": np.inf, "negative": -(2**60)}
        frame[column] = [[1, 2]] * len(frame) if change == "lists" else values[change]
    frame.to_parquet(path, index=False)
    return f"{path.name} {column} {change}"


def _place(folder: Path, files: list[Path], draw: random.Random) -> str:
    """Something that is not the file it should be."""
    path = draw.choice([file for file in files if file.suffix in (".json", ".parquet", ".png", ".safetensors")])
    below = draw.choice([path, path.parent]) if path.parent != folder else path
    kinds: dict[str, Callable[[], object]] = {
        "gone": lambda: None,
        "folder": lambda: below.mkdir(),
        "link outside": lambda: below.symlink_to(folder.parent / "outside", target_is_directory=below != path),
        "link to itself": lambda: below.symlink_to(below),
        "link to nothing": lambda: below.symlink_to(folder / "nothing"),
        "device": lambda: below.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(below),
    }
    kind = draw.choice(list(kinds))
    shutil.rmtree(below) if below.is_dir() else below.unlink()
    kinds[kind]()
    return f"{below.relative_to(folder)} {kind}"
