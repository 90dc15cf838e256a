"""One reader for each format of recorded routing, and which of them a file is for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moescope.errors import UsageError
from moescope.traces.readers.base import Counted, Recording, Request
from moescope.traces.readers.lines import lines, records

READERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "sglang-recorder": "sglang_recorder",
    "tensorrt-llm": "tensorrt_llm",
    "tensorrt-llm-eplb": "tensorrt_llm_eplb",
    "megatron": "megatron",
    "bigmoeonedge": "big_moe_on_edge",
    "ollama": "ollama",
    "olmoe": "olmoe",
    "imatrix": "imatrix",
    "moe-trace": "moe_trace",
    "counts": "counts",
}
"""Formats by the name that they are asked for by, and the module of each."""


def read(name: str, request: Request) -> Recording | Counted:
    """Reads files of a format, or with "auto" of the one they look like.

    Raises:
        UsageError: No such format or file, or what the reader refuses.
    """
    missing = [path for path in request.paths if not path.exists()]
    if missing or not request.paths:
        raise UsageError(f"there is no {missing[0] if missing else 'file'}", expected="files or a folder of recordings")
    chosen = detect(request.paths) if name == "auto" else name
    if chosen not in READERS:
        raise UsageError(f"there is no format {name!r}", expected=f"auto or one of {', '.join(READERS)}")
    found: Recording | Counted = importlib.import_module(f"{__name__}.{READERS[chosen]}").read(request)
    return found


def detect(paths: Sequence[Path]) -> str:
    """The format that files look like.

    Raises:
        UsageError: None that is known.
    """
    first = paths[0]
    if first.is_dir():
        names = [file.name for file in first.iterdir()]
        for pattern, name in (("meta_info.json", "tensorrt-llm-eplb"), ("router_trace_rank", "megatron"),
                              ("expert_distribution_recorder_", "sglang-recorder")):  # fmt: skip
            if any(file.startswith(pattern) for file in names):
                return name
        raise _unknown(first)
    by_suffix = {".gguf": "imatrix", ".npz": "counts", ".pt": "sglang-recorder"}
    if first.suffix in by_suffix:
        return by_suffix[first.suffix]
    if first.name == "meta_info.json":
        return "tensorrt-llm-eplb"
    _, line = next(lines(first), ("", b""))
    if line.startswith(b"# route_trace"):
        return "bigmoeonedge"
    if line.replace(b" ", b"").strip() == b"layer,expert":
        return "moe-trace"
    if line.lstrip()[:1] in (b"{", b"["):
        record = next(records([first]), ("", {}))[1]
        return _of_record(record) or _raise(first)
    raise _unknown(first)


def _of_record(record: Mapping[str, Any]) -> str | None:
    choices = record.get("choices", record.get("outputs"))
    inner = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else record
    if "exp_ids" in record:
        return "olmoe"
    if "top_indices" in record:
        return "megatron"
    if "layer" in record and "experts" in record:
        return "ollama"
    if "sgl_ext" in inner or (isinstance(inner.get("meta_info"), dict) and "routed_experts" in inner["meta_info"]):
        return "sglang"
    if "routed_experts" in inner or "prompt_routed_experts" in record or "moe_topk_indices" in inner:
        return "vllm"
    return None


def _raise(path: Path) -> str:
    raise _unknown(path)


def _unknown(path: Path) -> UsageError:
    return UsageError(
        f"{path} looks like no recording that is known",
        expected=f"one of {', '.join(READERS)}",
        remedy="name its format with `format` (docs/traces.md shows each)",
    )
