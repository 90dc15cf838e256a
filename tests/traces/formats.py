"""The same routing written as each engine writes it: what readers are held to.

`documents_of` takes a trace apart; each `write_*` writes it, and returns the path to read. Half of each document's
tokens are a prompt, the others are as if the model had written them, where a format tells the two apart.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from moescope.traces import Trace


@dataclass
class Routed:
    """One document: T tokens, L layers, K experts."""

    name: str
    domain: str
    token_ids_T: np.ndarray
    next_id: int
    expert_ids_TLK: np.ndarray
    weights_TLK: np.ndarray

    @property
    def num_prompt(self) -> int:
        return (len(self.token_ids_T) + 1) // 2

    @property
    def written(self) -> list[int]:
        """What was written: the last of it was never routed."""
        return [*self.token_ids_T[self.num_prompt :].tolist(), self.next_id]


def documents_of(trace: Trace) -> list[Routed]:
    found = []
    for block in trace.blocks(trace.facts.layers):
        for row, source in enumerate(block.documents):
            of_T = np.flatnonzero(block.rows_T == row)
            found.append(
                Routed(
                    source.document_id,
                    source.domain,
                    block.token_ids_T[of_T],
                    max(0, int(block.next_token_ids_T[of_T[-1]])),
                    block.expert_ids_TLK[of_T].astype(np.int64),
                    block.weights_TLK[of_T],
                )
            )
    return found


def as_npy(table: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, table)
    return base64.b64encode(file.getvalue()).decode()


def _lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _of_all_blocks(table: np.ndarray, moe: Sequence[int], num_blocks: int) -> np.ndarray:
    """With a row of zeros for each block without experts, as engines that index by block have it."""
    whole = np.zeros((len(table), num_blocks, table.shape[2]), table.dtype)
    whole[:, list(moe)] = table
    return whole


def write_vllm_first(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    """Until 0.20: of the Python API, saved as one JSON list; all blocks."""
    made = [
        {
            "request_id": document.name,
            "domain": document.domain,
            "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
            "outputs": [
                {
                    "token_ids": document.written,
                    "routed_experts": _of_all_blocks(document.expert_ids_TLK, layers, num_blocks).tolist(),
                }
            ],
        }
        for document in documents
    ]
    path = folder / "outputs.json"
    path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return path


def write_vllm_021(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    """0.21: nested lists, prompt and answer apart, MoE layers only; -1 where the prompt was cached."""
    records = []
    for number, document in enumerate(documents):
        prompt = document.expert_ids_TLK[: document.num_prompt].astype(np.int16)
        cached = document.token_ids_T[: document.num_prompt].tolist()
        if number == 0:  # two more tokens before it, which were in the cache
            prompt = np.concatenate([np.full((2, *prompt.shape[1:]), -1, np.int16), prompt])
            cached = [5, 6, *cached]
        records.append(
            {
                "id": document.name,
                "model": "some/model",
                "domain": document.domain,
                "prompt_token_ids": cached,
                "prompt_routed_experts": prompt.tolist(),
                "choices": [
                    {
                        "token_ids": document.written,
                        "routed_experts": document.expert_ids_TLK[document.num_prompt :].tolist(),
                    }
                ],
            }
        )
    return _lines(folder / "021.jsonl", records)


def write_vllm_022(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    """0.22: base64 of a .npy file of uint8."""
    return _lines(
        folder / "022.jsonl",
        [
            {
                "id": document.name,
                "domain": document.domain,
                "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
                "choices": [
                    {
                        "token_ids": document.written,
                        "routed_experts": as_npy(
                            _of_all_blocks(document.expert_ids_TLK, layers, num_blocks).astype(np.uint8)
                        ),
                    }
                ],
            }
            for document in documents
        ],
    )


def write_vllm_main(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    """2026-08: int32, after a known prefix."""
    return _lines(
        folder / "main.jsonl",
        [
            {
                "id": document.name,
                "domain": document.domain,
                "prompt_token_ids": [7, 8, 9, *document.token_ids_T[: document.num_prompt].tolist()],
                "routed_experts_prompt_start": 3,
                "choices": [
                    {"token_ids": document.written, "routed_experts": as_npy(document.expert_ids_TLK.astype(np.int32))}
                ],
            }
            for document in documents
        ],
    )


def _sglang(document: Routed, layers: Sequence[int], num_blocks: int) -> str:
    table = _of_all_blocks(document.expert_ids_TLK, layers, num_blocks).astype("<i4")
    return base64.b64encode(table.tobytes()).decode()


def write_sglang_generate(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    return _lines(
        folder / "generate.jsonl",
        [
            {
                "input_ids": document.token_ids_T[: document.num_prompt].tolist(),
                "output_ids": document.written,
                "meta_info": {"id": document.name, "routed_experts": _sglang(document, layers, num_blocks)},
                "domain": document.domain,
            }
            for document in documents
        ],
    )


def write_sglang_openai(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    return _lines(
        folder / "openai.jsonl",
        [
            {
                "id": document.name,
                "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
                "choices": [
                    {
                        "token_ids": document.written,
                        "sgl_ext": {"routed_experts": _sglang(document, layers, num_blocks)},
                    }
                ],
                "domain": document.domain,
            }
            for document in documents
        ],
    )


def _physical(layers: Sequence[int], num_blocks: int, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a balancer put each expert (two slots more than experts), and which expert each slot holds."""
    draw = np.random.default_rng(3)
    of_slot = np.stack([draw.permutation([*range(num_experts), 0, 1]) for _ in range(num_blocks)])
    slots = np.stack([[np.flatnonzero(row == expert)[-1] for expert in range(num_experts)] for row in of_slot])
    return slots, of_slot


def write_sglang_recorder(
    folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int, num_experts: int
) -> Path:
    """per_token: physical ids, slots of eight; two ranks that saw the same tokens."""
    folder = folder / "recorder"
    folder.mkdir()
    slots, of_slot = _physical(layers, num_blocks, num_experts)
    records = []
    for number, document in enumerate(documents):
        table = np.full((num_blocks, len(document.token_ids_T), 8), -1, np.int32)
        for position, layer in enumerate(layers):
            ids = slots[layer][document.expert_ids_TLK[:, position]]
            table[layer, :, : ids.shape[1]] = ids
        records.append(
            {
                "forward_pass_id": number,
                "rank": 0,
                "gatherer_key": "primary",
                "input_ids": torch.from_numpy(document.token_ids_T),
                "positions": torch.arange(len(document.token_ids_T)),
                "extend_seq_lens": [len(document.token_ids_T)],
                "forward_mode": 1,
                "topk_ids_of_layer": torch.from_numpy(table),
                "misc_objects": [],
            }
        )
    dump = {"records": records, "last_physical_to_logical_map": torch.from_numpy(of_slot)}
    for rank in (0, 1):
        torch.save(dump, folder / f"expert_distribution_recorder_1.5_{rank}.pt")
    return folder


def write_sglang_stat(
    folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int, num_experts: int
) -> Path:
    steps = np.zeros((len(documents), num_blocks, num_experts), np.int32)
    for number, document in enumerate(documents):
        for position, layer in enumerate(layers):
            steps[number, layer] = np.bincount(document.expert_ids_TLK[:, position].ravel(), minlength=num_experts)
    path = folder / "expert_distribution_recorder_2.5.pt"
    torch.save(
        {"rank": 0, "logical_count": torch.from_numpy(steps), "average_utilization_rate_over_window": None}, path
    )
    return path


def write_tensorrt_llm(folder: Path, documents: list[Routed], layers: Sequence[int], num_blocks: int) -> Path:
    return _lines(
        folder / "trt.jsonl",
        [
            {
                "request_id": document.name,
                "domain": document.domain,
                "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
                "outputs": [{"token_ids": document.written, "routed_experts": document.expert_ids_TLK.tolist()}],
            }
            for document in documents
        ],
    )


def write_eplb(folder: Path, documents: list[Routed], layers: Sequence[int], num_experts: int) -> Path:
    folder = folder / "eplb"
    folder.mkdir()
    for rank in range(2):
        counts = {
            f"{number}_{layer}": np.bincount(document.expert_ids_TLK[:, position].ravel(), minlength=num_experts)
            for number, document in enumerate(documents)
            if number % 2 == rank
            for position, layer in enumerate(layers)
        }
        save_file(counts, folder / f"rank{rank}.safetensors")
    per_token = documents[0].expert_ids_TLK.shape[2]
    meta = {"num_experts": num_experts, "num_experts_per_token": per_token, "ep_size": 2, "experts_per_rank": 32}
    (folder / "meta_info.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def write_megatron(folder: Path, documents: list[Routed], layers: Sequence[int]) -> Path:
    """Two data-parallel ranks; ids in the experts' own order."""
    folder = folder / "megatron"
    folder.mkdir()
    for rank in range(2):
        records = [
            {
                "step": number // 2,
                "stage": "pre_dispatch",
                "block": "decoder",
                "layer": layer,
                "rank": rank,
                "num_tokens": len(document.token_ids_T),
                "topk": document.expert_ids_TLK.shape[2],
                "top_indices": np.sort(document.expert_ids_TLK[:, position], axis=1).tolist(),
            }
            for number, document in enumerate(documents)
            if number % 2 == rank
            for position, layer in enumerate(layers)
        ]
        records.append({**records[0], "block": "mtp", "mtp_idx": 0})
        _lines(folder / f"router_trace_rank{rank}.jsonl", records)
    return folder


def write_big_moe_on_edge(folder: Path, documents: list[Routed], layers: Sequence[int], num_experts: int) -> Path:
    per_token = documents[0].expert_ids_TLK.shape[2]
    rows = [
        "# route_trace v1",
        f"# model=nano.gguf n_layer={len(layers)} n_expert={num_experts} n_expert_used={per_token}",
        *(f"# layer={layer} expert_bytes=1 dense_bytes=1" for layer in layers),
        "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped",
    ]
    for turn, document in enumerate(documents):
        steps = [("prefill", 0, range(document.num_prompt))]
        steps += [("decode", t, range(t, t + 1)) for t in range(document.num_prompt, len(document.token_ids_T))]
        for phase, step, tokens in steps:
            for position, layer in enumerate(layers):
                for token in tokens:
                    for slot in range(per_token):
                        expert = document.expert_ids_TLK[token, position, slot]
                        weight = document.weights_TLK[token, position, slot]
                        rows.append(f"{turn},{phase},{step},{layer},{slot},{expert},{weight:.6g},ram,1,0")
    path = folder / "route.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_ollama(folder: Path, documents: list[Routed], layers: Sequence[int]) -> Path:
    records = []
    per_token = documents[0].expert_ids_TLK.shape[2]
    for document in documents:
        number = len(document.token_ids_T)
        for position, layer in enumerate(layers):
            facts = {"n_used": per_token, "n_tokens": number}
            records.append(
                {
                    "layer": layer,
                    "name": f"ffn_moe_topk-{layer}",
                    **facts,
                    "experts": document.expert_ids_TLK[:, position].tolist(),
                }
            )
            records.append({"wlayer": layer, **facts, "weights": document.weights_TLK[:, position].tolist()})
    return _lines(folder / "moe-vis.jsonl", records)


def write_olmoe(folder: Path, documents: list[Routed]) -> Path:
    return _lines(
        folder / "c4_results.jsonl",
        [
            {
                "input_ids": document.token_ids_T.tolist(),
                "predicted_token_ids": [*document.token_ids_T[1:].tolist(), document.next_id],
                "exp_ids": document.expert_ids_TLK.transpose(0, 2, 1).tolist(),
                "domain": document.domain,
            }
            for document in documents
        ],
    )


def write_moe_trace(folder: Path, documents: list[Routed], layers: Sequence[int]) -> Path:
    rows = ["layer,expert"]
    for document in documents:
        for position, layer in enumerate(layers):
            rows += [f"{layer},{expert}" for expert in document.expert_ids_TLK[:, position].ravel().tolist()]
    path = folder / "moe.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_imatrix(folder: Path, documents: list[Routed], layers: Sequence[int], num_experts: int) -> Path:
    import gguf

    path = folder / "nano-imatrix.gguf"
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", sum(len(document.token_ids_T) for document in documents))
    for position, layer in enumerate(layers):
        ids = np.concatenate([document.expert_ids_TLK[:, position].ravel() for document in documents])
        counts = np.bincount(ids, minlength=num_experts).astype(np.float32)[:, None]
        for matrix in ("gate", "up", "down"):
            name = f"blk.{layer}.ffn_{matrix}_exps.weight"
            writer.add_tensor(f"{name}.in_sum2", np.ones((num_experts, 4), np.float32))
            writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_counts(folder: Path, documents: list[Routed], layers: Sequence[int], num_experts: int) -> Path:
    domains = list(dict.fromkeys(document.domain for document in documents))
    counts = np.zeros((len(layers), len(domains), num_experts), np.int64)
    tokens = np.zeros(len(domains), np.int64)
    for document in documents:
        domain = domains.index(document.domain)
        tokens[domain] += len(document.token_ids_T)
        for position in range(len(layers)):
            counts[position, domain] += np.bincount(document.expert_ids_TLK[:, position].ravel(), minlength=num_experts)
    path = folder / "counts.npz"
    np.savez(path, counts_LDE=counts, tokens_D=tokens, layers=np.array(layers), domains=np.array(domains))
    return path


Writer = Callable[..., Path]
