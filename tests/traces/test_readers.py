"""Every reader against the model's own counts; what it says of files that are hostile, cut off or of another model."""

from __future__ import annotations

import base64
import io
import json
import shutil
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import moescope
from moescope.errors import UsageError
from moescope.traces.readers import READERS, detect
from moescope.traces.readers.base import Shape
from tests.families import build, save
from tests.traces import formats
from tests.traces.conftest import counts_of

# Format: how it is written, whether the model has to be named, whether it tells domains, ids, ranks.
REQUESTS = {
    "vllm-first": formats.write_vllm_first,
    "vllm-0.21": formats.write_vllm_021,
    "vllm-0.22": formats.write_vllm_022,
    "vllm-main": formats.write_vllm_main,
    "tensorrt-llm": formats.write_tensorrt_llm,
    "sglang-generate": formats.write_sglang_generate,
    "sglang-openai": formats.write_sglang_openai,
}


@pytest.mark.parametrize("name", REQUESTS)
def test_responses_give_the_models_counts_by_domain(name, nano, tmp_path):
    path = REQUESTS[name](tmp_path, nano.documents, nano.layers, len(nano.layers))
    asked = "tensorrt-llm" if name == "tensorrt-llm" else "auto"
    trace = moescope.open_trace(path, format=asked, model="nano")
    found = counts_of(trace)
    assert set(found) == set(nano.counts)
    for domain, counts_LE in found.items():
        np.testing.assert_array_equal(counts_LE, nano.counts[domain], err_msg=domain)
    assert trace.phases == ("prompt", "generated")
    assert {"token_id", "next_token_id", "ranks", "document_id"} <= trace.columns
    assert sum(domain.num_documents for domain in trace.facts.domains) == len(nano.documents)
    tokens = np.concatenate([block.token_ids_T for block in trace.blocks([0])])
    next_ids = np.concatenate([block.next_token_ids_T for block in trace.blocks([0])])
    np.testing.assert_array_equal(tokens, np.concatenate([document.token_ids_T for document in nano.documents]))
    expected = [i for document in nano.documents for i in [*document.token_ids_T[1:].tolist(), document.next_id]]
    assert next_ids.tolist() == expected


def test_tokens_from_the_prefix_cache_are_left_out_and_noted(nano, tmp_path):
    trace = moescope.open_trace(formats.write_vllm_021(tmp_path, nano.documents, nano.layers, 16), model="nano")
    assert any(note.startswith("2 tokens without routing") for note in trace.facts.notes)
    first = next(trace.blocks([0]))
    assert first.positions_T[0] == 2


def test_without_a_model_what_the_recording_tells(nano, tmp_path):
    trace = moescope.open_trace(formats.write_vllm_022(tmp_path, nano.documents, nano.layers, 16))
    assert trace.facts.num_experts == 1 + max(int(d.expert_ids_TLK.max()) for d in nano.documents)
    assert any("the largest id" in note for note in trace.facts.notes)
    assert trace.facts.layers == nano.layers


def test_layers_without_experts_are_dropped_by_the_configuration(tmp_path):
    """qwen2_moe with a dense block: engines that index by block show it as expert 0 everywhere."""
    folder = save(build("qwen2_moe"), tmp_path / "model")
    draw = np.random.default_rng(0)
    ids = np.stack([[draw.permutation(8)[:2] for _ in range(3)] for _ in range(9)])
    document = formats.Routed("a", "web", np.arange(9), 9, ids, np.full(ids.shape, 0.5))
    for write in (formats.write_vllm_022, formats.write_sglang_openai):
        path = write(tmp_path, [document], [0, 2, 3], 4)
        trace = moescope.open_trace(path, model=str(folder / "config.json"))
        assert trace.facts.layers == [0, 2, 3] and trace.facts.family == "qwen2_moe"
        blocks = list(trace.blocks([0, 2, 3]))
        np.testing.assert_array_equal(np.concatenate([block.expert_ids_TLK for block in blocks]), ids)
    without = moescope.open_trace(formats.write_vllm_022(tmp_path, [document], [0, 2, 3], 4))
    assert without.facts.layers == [0, 2, 3]
    assert any(note.startswith("layers without experts, by their ids (all 0): 1") for note in without.facts.notes)
    # of the MoE layers alone, the layers' numbers are the configuration's
    alone = moescope.open_trace(formats.write_tensorrt_llm(tmp_path, [document], [0, 2, 3], 4), model=str(folder))
    assert alone.facts.layers == [0, 2, 3]


def test_choices_share_one_prompt(nano, tmp_path):
    document = nano.documents[0]
    table = document.expert_ids_TLK.tolist()
    record = {
        "id": "x",
        "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
        "choices": [{"token_ids": document.written, "routed_experts": table}] * 2,
    }
    path = tmp_path / "n2.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({**record, "id": "y", "choices": [{"token_ids": [1]}]}))
    trace = moescope.open_trace(path, model="nano", domain="chat")
    num_written = len(document.written) - 1
    assert trace.facts.num_tokens == document.num_prompt + 2 * num_written
    assert any(note.startswith("1 requests without routing") for note in trace.facts.notes)


STREAMS = {
    "megatron": lambda folder, nano: formats.write_megatron(folder, nano.documents, nano.layers),
    "ollama": lambda folder, nano: formats.write_ollama(folder, nano.documents, nano.layers),
    "bigmoeonedge": lambda folder, nano: formats.write_big_moe_on_edge(
        folder, nano.documents, nano.layers, nano.num_experts
    ),
    "sglang-recorder": lambda folder, nano: formats.write_sglang_recorder(
        folder, nano.documents, nano.layers, 16, nano.num_experts
    ),
    "olmoe": lambda folder, nano: formats.write_olmoe(folder, nano.documents),
}
COUNTS = {
    "sglang-stat": lambda folder, nano: formats.write_sglang_stat(
        folder, nano.documents, nano.layers, 16, nano.num_experts
    ),
    "tensorrt-llm-eplb": lambda folder, nano: formats.write_eplb(folder, nano.documents, nano.layers, nano.num_experts),
    "moe-trace": lambda folder, nano: formats.write_moe_trace(folder, nano.documents, nano.layers),
    "imatrix": lambda folder, nano: formats.write_imatrix(folder, nano.documents, nano.layers, nano.num_experts),
    "counts": lambda folder, nano: formats.write_counts(folder, nano.documents, nano.layers, nano.num_experts),
}


@pytest.mark.parametrize("name", [*STREAMS, *COUNTS])
def test_other_formats_give_the_models_counts(name, nano, tmp_path):
    path = (STREAMS | COUNTS)[name](tmp_path, nano)
    assert detect([path]) == ("sglang-recorder" if name == "sglang-stat" else name)
    trace = moescope.open_trace(path, model="nano")
    found = counts_of(trace)
    np.testing.assert_array_equal(sum(found.values()), nano.counts_LE)
    if name in ("olmoe", "counts"):
        for domain, counts_LE in found.items():
            np.testing.assert_array_equal(counts_LE, nano.counts[domain])
    assert ("counts" in trace.columns) == (name in COUNTS)
    assert ("ranks" in trace.columns) == (name in STREAMS and name != "megatron")
    assert ("weights" in trace.columns) == (name in ("ollama", "bigmoeonedge"))


def test_weights_are_those_recorded(nano, tmp_path):
    for write in (STREAMS["ollama"], STREAMS["bigmoeonedge"]):
        trace = moescope.open_trace(write(tmp_path, nano), model="nano")
        found = np.concatenate([block.weights_TLK for block in trace.blocks(nano.layers)])
        expected = np.concatenate([document.weights_TLK for document in nano.documents])
        np.testing.assert_allclose(found, expected, rtol=2**-10)


def test_the_importance_matrix_tells_experts_and_names_its_domain(nano, tmp_path):
    trace = moescope.open_trace(COUNTS["imatrix"](tmp_path, nano))
    facts = trace.facts
    assert (facts.num_experts, facts.num_experts_per_token) == (nano.num_experts, nano.num_experts_per_token)
    assert [domain.name for domain in facts.domains] == ["nano-imatrix"]
    assert facts.num_tokens == sum(len(document.token_ids_T) for document in nano.documents)


def test_missing_ranks_are_named_and_doubled_ranks_counted_once(nano, tmp_path):
    folder = STREAMS["megatron"](tmp_path, nano)
    shutil.copy(folder / "router_trace_rank1.jsonl", folder / "router_trace_rank3.jsonl")
    trace = moescope.open_trace(folder, model="nano")
    assert any("no file of rank 2" in note for note in trace.facts.notes)
    assert any("several ranks recorded are counted once" in note for note in trace.facts.notes)
    np.testing.assert_array_equal(sum(counts_of(trace).values()), nano.counts_LE)


def test_a_last_layer_that_computes_only_outputs_is_left_out(nano, tmp_path):
    path = STREAMS["ollama"](tmp_path, nano)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record.get("layer", record.get("wlayer")) == nano.layers[-1]:
            record["n_tokens"] = 1
            for name in {"experts", "weights"} & set(record):
                record[name] = record[name][-1:]
    formats._lines(path, records)
    trace = moescope.open_trace(path)
    assert trace.facts.layers == nano.layers[:-1]
    np.testing.assert_array_equal(sum(counts_of(trace).values()), nano.counts_LE[:-1])


def test_the_domain_is_a_field_a_name_or_the_files(nano, tmp_path):
    path = formats.write_vllm_022(tmp_path, nano.documents[:3], nano.layers, 16)

    def names(**options):
        return [domain.name for domain in moescope.open_trace(path, model="nano", **options).facts.domains]

    assert names() == sorted(document.domain for document in nano.documents[:3])
    assert names(domain="mine") == ["mine"]
    assert names(domain_field="id") == sorted(document.name for document in nano.documents[:3])
    with pytest.raises(UsageError, match="no field 'nothing'"):
        names(domain_field="nothing")
    with pytest.raises(UsageError, match="`domain` was given with `domain_field`"):
        names(domain="x", domain_field="id")


# What is wrong with a record of vLLM's, and what is said of it.
WRONG = {
    "an id of no expert": (lambda r: r["choices"][0].update(routed_experts=_with(r, 64)), "expert 64 at layer"),
    "a negative id": (lambda r: r["choices"][0].update(routed_experts=_with(r, -2)), "expert -2 at layer"),
    "an expert twice": (lambda r: r["choices"][0].update(routed_experts=_twice(r)), "not distinct"),
    "rows missing": (lambda r: r["prompt_token_ids"].append(4), "rows of routing"),
    "no token ids": (lambda r: r.pop("prompt_token_ids"), "has no prompt_token_ids"),
    "text for numbers": (lambda r: r["choices"][0].update(routed_experts=[["a"]]), "has shape"),
    "ragged": (lambda r: r["choices"][0].update(routed_experts=[[[1]], [[1, 2]]]), "no table of numbers"),
    "no base64": (lambda r: r["choices"][0].update(routed_experts="!!"), "no base64"),
    "a pickle": (lambda r: r["choices"][0].update(routed_experts=_pickle()), "not whole numbers"),
    "a promise": (lambda r: r["choices"][0].update(routed_experts=_promise()), "its header promises"),
    "another model": (
        lambda r: r["choices"][0].update(routed_experts=[[[1, 2]]] * (len(r["prompt_token_ids"]) + 1)),
        "routing of 1 layers",
    ),
    "choices that are none": (lambda r: r.update(choices=3), "has no choices"),
}


def _table(record):
    return np.array(record["choices"][0]["routed_experts"])


def _with(record, expert):
    table = _table(record)
    table[3, 2, 1] = expert
    return table.tolist()


def _twice(record):
    table = _table(record)
    table[3, 2, 1] = table[3, 2, 0]
    return table.tolist()


def _pickle():
    return formats.as_npy(np.array([{"a": print}], dtype=object))


def _promise():
    text = base64.b64decode(formats.as_npy(np.zeros((2, 2, 2), np.uint8)))
    return base64.b64encode(text.replace(b"(2, 2, 2)", b"(2, 2, 9)")).decode()


@pytest.mark.parametrize("name", WRONG)
def test_responses_that_are_refused(name, nano, tmp_path):
    spoil, said = WRONG[name]
    document = nano.documents[0]
    record = {
        "id": "a",
        "prompt_token_ids": document.token_ids_T.tolist(),
        "choices": [{"token_ids": [document.next_id], "routed_experts": document.expert_ids_TLK.tolist()}],
    }
    spoil(record)
    path = formats._lines(tmp_path / "wrong.jsonl", [record])
    with pytest.raises(UsageError, match=said):
        moescope.open_trace(path, format="vllm", model="nano")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-37])
    return path


def _append(path, text):
    path.write_text(path.read_text() + text)
    return path


def _cut_rank(folder):
    _cut(folder / "rank1.safetensors")
    return folder


def _evil_pt(folder):
    for file in folder.glob("*.pt"):
        torch.save({"records": [Evil()]}, file)
    return folder


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("counts_LDE.npy", bytes(2**30 + 1))
    return path


def test_no_array_of_published_counts_takes_the_memory_that_its_header_promises(nano, tmp_path):
    path = COUNTS["counts"](tmp_path, nano)
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<U8", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (arrays | {"domains.npy": header.getvalue()}).items():
            archive.writestr(name, data)
    with pytest.raises(UsageError, match="its header promises shape"):
        moescope.open_trace(path, format="counts", model="nano")


# One hostile or truncated file a format: how it is spoiled, and what is said.
SPOILED = {
    "vllm": (lambda f, n: _cut(formats.write_vllm_022(f, n.documents, n.layers, 16)), "is no JSON"),
    "sglang": (lambda f, n: _cut(formats.write_sglang_generate(f, n.documents, n.layers, 16)), "is no JSON"),
    "tensorrt-llm": (lambda f, n: _cut(formats.write_tensorrt_llm(f, n.documents, n.layers, 16)), "is no JSON"),
    "sglang-recorder": (lambda f, n: _evil_pt(STREAMS["sglang-recorder"](f, n)), "can't be read"),
    "megatron": (
        lambda f, n: _append(STREAMS["megatron"](f, n) / "router_trace_rank0.jsonl", '{"step": -1}\n').parent,
        "layer is 'None'",
    ),
    "bigmoeonedge": (lambda f, n: _cut(STREAMS["bigmoeonedge"](f, n)), "cells|slots in order"),
    "ollama": (lambda f, n: _append(STREAMS["ollama"](f, n), '{"layer": 0, "experts": [[1, 2], [1]]}\n'), "lengths"),
    "olmoe": (
        lambda f, n: _append(STREAMS["olmoe"](f, n), '{"input_ids": [1], "exp_ids": "x"}\n'),
        "no base64|no .npy",
    ),
    "tensorrt-llm-eplb": (lambda f, n: _cut_rank(COUNTS["tensorrt-llm-eplb"](f, n)), "can't be read"),
    "moe-trace": (lambda f, n: _append(COUNTS["moe-trace"](f, n), "0,99\n"), "expert 99 of layer 0"),
    "imatrix": (lambda f, n: _cut(COUNTS["imatrix"](f, n)), "no GGUF file that can be read|holds no counts"),
    "counts": (lambda f, n: _bomb(COUNTS["counts"](f, n)), "expands to more than"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_files_that_are_hostile_or_cut_off(name, nano, tmp_path, capsys):
    spoil, said = SPOILED[name]
    path = spoil(tmp_path, nano)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match=said):
            moescope.open_trace(path, format=name, model="nano")
    assert "code ran" not in capsys.readouterr().out


def test_every_format_has_a_file_that_is_refused():
    assert set(SPOILED) == set(READERS)


def test_physical_ids_without_their_map_are_refused(nano, tmp_path):
    folder = STREAMS["sglang-recorder"](tmp_path, nano)
    for file in folder.glob("*.pt"):
        dump = torch.load(file, weights_only=True)
        torch.save({"records": dump["records"]}, file)
    with pytest.raises(UsageError, match="physical experts"):
        moescope.open_trace(folder, model="nano")


@pytest.mark.parametrize("name", ["sglang-generate", "sglang-stat", "moe-trace"])
def test_what_does_not_say_enough_asks_for_the_model(name, nano, tmp_path):
    write = REQUESTS.get(name)
    path = write(tmp_path, nano.documents, nano.layers, 16) if write else COUNTS[name](tmp_path, nano)
    with pytest.raises(UsageError, match="name it with `model`"):
        moescope.open_trace(path)


def test_counts_of_an_importance_matrix_that_are_not_whole(nano, tmp_path):
    cut = replace(nano.documents[0], expert_ids_TLK=nano.documents[0].expert_ids_TLK[:-1])
    path = formats.write_imatrix(tmp_path, [cut], nano.layers, nano.num_experts)
    with pytest.raises(UsageError, match="selections at layer 0"):
        moescope.open_trace(path)


def test_a_file_of_no_known_format(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    with pytest.raises(UsageError, match="looks like no recording that is known"):
        moescope.open_trace(path)
    with pytest.raises(UsageError, match="there is no"):
        moescope.open_trace(tmp_path / "nothing")
    with pytest.raises(UsageError, match="there is no format 'x'"):
        moescope.open_trace(path, format="x")


def test_a_shape_that_does_not_fit_is_refused(nano, tmp_path):
    from moescope.traces.readers.base import layers_of

    shape = Shape(4, (1, 3), 8, 2)
    assert layers_of(4, shape, "x") == ([1, 3], [1, 3])
    assert layers_of(2, shape, "x") == ([0, 1], [1, 3])
    with pytest.raises(UsageError, match="routing of 3 layers"):
        layers_of(3, shape, "x")
