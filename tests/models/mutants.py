"""Checkpoints with one thing wrong in one file, and a process that loads many of them and says what came of each.

    python -m tests.models.mutants BASE SEED COUNT

prints one JSON line for each mutant: what was changed, how loading ended, processor time, memory taken so far.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 10**12, 10**30, 1.5, -0.5, float("nan"), float("inf"), "", "x", "1",
    "silu", "../outside", "/etc/passwd", "é" * 50, [], [1, 2], ["a"], {}, {"a": 1}, [[[[]]]], "bfloat16", "load",
]  # fmt: skip
ENTRIES: dict[str, Any] = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]},
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "flash_attention_2",
    "experts_implementation": "nothing",
    "transformers_weights": "../../etc/passwd.safetensors",
    "fusion_config": {"nothing": True},
    "attribute_map": {"num_hidden_layers": "hidden_size"},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [0, -1]},
    "to_dict": 5,
    "return_dict": False,
    "per_layer_config": {"0": {"hidden_size": 8}},
    "layer_types": ["full_attention"] * 9,
    "rope_scaling": {"rope_type": "yarn", "factor": "x"},
    "tokenizer_file": "/etc/passwd",
    "fast_tokenizer_files": ["../../tokenizer.4.0.json"],
    "init_inputs": ["/etc/passwd"],
    "eos_token_id": 10**9,
    "num_local_experts": 0,
}


def mutate(folder: Path, draw: random.Random) -> str:
    """Changes one thing in one file of a checkpoint; says what."""
    weights = sorted(folder.glob("*.safetensors"))
    others = [folder / "config.json", folder / "tokenizer.json", folder / "tokenizer_config.json"]
    others += sorted(folder.glob("*.index.json")) * 2
    path = draw.choice([*others, others[0], draw.choice(weights)])
    if path.suffix == ".safetensors" and draw.random() < 0.8:
        return f"{path.name}: {_header(path, draw)}"
    if path.suffix == ".json" and draw.random() < 0.8:
        content = json.loads(path.read_text())
        how = _value(content, draw)
        path.write_text(json.dumps(content))
        return f"{path.name}: {how}"
    return f"{path.name}: {_bytes(path, draw)}"


def _bytes(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = draw.choice(["emptied", "cut", "flipped", "removed", "deep", "not utf-8"])
    if how == "removed":
        path.unlink()
        return how
    if how == "emptied":
        content.clear()
    elif how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "flipped":
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "deep":
        content = bytearray(b'{"a":' * 100_000)
    else:
        content[len(content) // 2 : len(content) // 2] = b"\xff\xfe"
    path.write_bytes(content)
    return how


def _value(content: Any, draw: random.Random) -> str:
    """Replaces, removes or adds one entry somewhere in a JSON value."""
    where = []
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return "nothing"
        key = draw.choice(keys)
        deeper = content[key]
        if isinstance(deeper, dict | list) and deeper and draw.random() < 0.75:
            where.append(str(key))
            content = deeper
            continue
        break
    how = draw.random()
    if how < 0.15:
        del content[key]
        return f"{'.'.join([*where, str(key)])} removed"
    if how < 0.35 and isinstance(content, dict):
        key = draw.choice(list(ENTRIES))
        content[key] = ENTRIES[key]
        return f"{'.'.join([*where, key])} added"
    content[key] = draw.choice(VALUES)
    return f"{'.'.join([*where, str(key)])} = {content[key]!r:.40}"


def _header(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    how = draw.choice(["length", "dtype", "shape", "offsets", "name", "value"])
    if how == "length":
        length = draw.choice([0, 1, 2**31, 2**63, length + 1, length - 1])
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        return f"header of {length} bytes"
    entry = header[name]
    if how == "dtype":
        entry["dtype"] = draw.choice(["F64", "F16", "I8", "U8", "F8_E4M3", "BOOL", "X", 5])
    elif how == "shape":
        entry["shape"] = draw.choice([[], [2**40, 2**40], [-1], entry["shape"][::-1], [*entry["shape"], 1], "x"])
    elif how == "offsets":
        entry["data_offsets"] = draw.choice([[0, 2**60], [5, 2], [0, 0], [-8, 8], None])
    elif how == "name":
        header[draw.choice(["", "x" * 1000, "../x", f"{name}.weight"])] = header.pop(name)
    else:
        header[name] = draw.choice(VALUES)
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    return f"{how} of {name}"


def attempt(folder: Path) -> str:
    """Loads a checkpoint and reads a text with it: "works", "refused: ...", or a traceback."""
    from moescope.errors import MoescopeError
    from moescope.models import inspect_checkpoint, load_model

    try:
        inspect_checkpoint(str(folder))
        model = load_model(str(folder))
        model.tokenizer("some text")
    except MoescopeError as error:
        return f"refused: {error.found}"
    except BaseException:
        return traceback.format_exc()
    return "works"


def main(base: str, seed: str, count: str) -> None:
    """Loads mutants of the checkpoints that are folders of `base`, in turn."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (120 + 3 * int(count),) * 2)  # what hangs is ended
    bases = sorted(Path(base).iterdir())
    for folder in bases:  # what loading takes by itself
        assert attempt(folder) == "works", folder
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    draw = random.Random(int(seed))
    for number in range(int(count)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(shutil.copytree(bases[number % len(bases)], Path(temporary) / "mutant"))
            what = f"{bases[number % len(bases)].name}/{mutate(folder, draw)}"
            started = time.process_time()
            print(json.dumps({"what": what}), file=sys.stderr, flush=True)  # tells which one hangs
            result = attempt(folder)
            seconds = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(json.dumps({"what": what, "result": result, "seconds": seconds, "grown": grown}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
