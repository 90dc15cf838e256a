"""A checkpoint is data: no code of its own runs, nothing outside its folder is read, its numbers fit together."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moescope.errors import ModelError, MoescopeWarning, UsageError
from moescope.models import inspect_checkpoint, load_model
from moescope.models.gate import is_inner_name
from tests.families import FAMILIES, build, save, tokenizer

OWN_CONFIG = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import Qwen3MoeConfig
class OwnConfig(Qwen3MoeConfig):
    model_type = "own_moe"
"""
OWN_MODEL = """
from transformers import Qwen3MoeForCausalLM, Qwen3MoeModel
from .configuration_own import OwnConfig
class OwnForCausalLM(Qwen3MoeForCausalLM):
    config_class = OwnConfig
class OwnModel(Qwen3MoeModel):
    config_class = OwnConfig
"""
AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("qwen3_moe"), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("olmoe"), tmp_path_factory.mktemp("sharded"), max_shard_size="15KB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "shards"))


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))


def with_own_code(folder: Path, model_type: str) -> Path:
    """Gives a checkpoint code of its own, which leaves the file that is returned when it runs."""
    marker = folder.parent / "marker"
    (folder / "configuration_own.py").write_text(OWN_CONFIG.format(marker=str(marker)))
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    edit(folder / "config.json", model_type=model_type, auto_map=AUTO_MAP)
    return marker


def test_code_of_a_checkpoint_does_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = with_own_code(folder, "own_moe")
    # Nobody is asked, so that nobody (and no `yes`) can agree.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for load in (load_model, inspect_checkpoint):
        with pytest.raises(ModelError, match=r"configuration_own.py, modeling_own.py\), which was not run") as error:
            load(str(folder))
        assert "trust_remote_code=True" in str(error.value)
    script = "import sys; from moescope.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "info", "--model", str(folder)]
    run = subprocess.run(command, input="y\n" * 100, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "which was not run" in run.stderr
    assert not marker.exists()


def test_a_family_that_transformers_knows_is_loaded_by_transformers(folder: Path) -> None:
    marker = with_own_code(folder, "qwen3_moe")
    for trust in (False, True):
        assert type(load_model(str(folder), trust_remote_code=trust).hf).__module__.startswith("transformers.")
    assert not marker.exists()


def test_trusted_code_runs_and_is_named(folder: Path) -> None:
    marker = with_own_code(folder, "own_moe")
    # Names as the modules have them: transformers renames tensors only for families that it knows.
    save_file(build("qwen3_moe").state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(MoescopeWarning, match=r"runs code of its own.*configuration_own.py, modeling_own.py"):
        model = load_model(str(folder), trust_remote_code=True)
    assert marker.exists()
    assert type(model.hf).__name__ == "OwnForCausalLM"
    with pytest.warns(MoescopeWarning, match="runs code of its own"):
        assert load_model(str(folder), layers=[0], trust_remote_code=True).layers == (0,)


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation_internal": "flash_attention_2"},
        {"experts_implementation": "someone/kernel"},
        {"fusion_config": {"someone/kernel": True}},
        {"transformers_weights": "../outside.safetensors"},
        {"attribute_map": {"num_hidden_layers": "hidden_size"}},
        {"to_dict": 5},
        {"return_dict": False},
        {"custom_generate": "someone/code"},
    ],
)
def test_entries_that_are_not_for_a_checkpoint_change_nothing(whole: Path, folder: Path, entry: dict[str, Any]) -> None:
    edit(folder / "config.json", **entry)
    model, plain = load_model(str(folder)), load_model(str(whole))
    assert model.config_hash == plain.config_hash
    assert model.hf.config._attn_implementation == plain.hf.config._attn_implementation
    ids = torch.arange(1, 9)[None]
    assert torch.equal(model.hf(input_ids=ids).logits, plain.hf(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "~/x.safetensors", "a/../../x.safetensors"])
def test_weights_outside_the_folder_are_refused(shards: Path, name: str) -> None:
    shutil.copy(next(shards.glob("*.safetensors")), shards.parent / "outside.safetensors")
    index = shards / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**weight_map, next(iter(weight_map)): name})
    with pytest.raises(ModelError, match="says that weights are in") as error:
        load_model(str(shards))
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["*", "model-*.safetensors", "model.bin", 5, None, ["a"], {"a": 1}])
def test_names_of_files_that_are_none(shards: Path, name: Any) -> None:
    index = shards / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**weight_map, next(iter(weight_map)): name})
    with pytest.raises(ModelError, match="says that weights are in"):
        load_model(str(shards))


@pytest.mark.parametrize("weight_map", [None, 5, "x", [], {}, ["a"]])
def test_an_index_without_tensors(shards: Path, weight_map: Any) -> None:
    edit(shards / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ModelError, match="weight_map"):
        load_model(str(shards))


def test_an_index_that_contradicts_its_files(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(weight_map.values()))[:2]
    moved = next(key for key, file in weight_map.items() if file == first)
    edit(index, weight_map={**weight_map, moved: second})
    with pytest.raises(ModelError, match=f"not in the files .* names: {moved}"):
        load_model(str(shards))
    edit(index, weight_map=weight_map)
    tensors = load_file(shards / second) | {moved: load_file(shards / first)[moved] + 1}
    save_file(tensors, shards / second, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"holds the tensor {moved} twice"):
        load_model(str(shards))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"])
def test_links_that_lead_out_are_refused(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(ModelError, match=f"{name} of .* is a symbolic link that leads out"):
        _ = load_model(str(folder)).tokenizer
    (folder / name).unlink()
    shutil.move(folder.parent / name, folder / f"real-{name}")
    (folder / name).symlink_to(f"real-{name}")
    _ = load_model(str(folder)).tokenizer


def test_links_of_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    _ = load_model(str(snapshot)).tokenizer
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(ModelError, match="leads out"):
        load_model(str(snapshot))


def test_a_pipe_in_place_of_a_file_does_not_block(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ModelError, match="is no checkpoint"):
        load_model(str(folder))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / "ran")))
    with pytest.raises(ModelError, match=r"are pickles \(pytorch_model.bin\)[\s\S]*safetensors"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_formats_that_are_not_read_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"holds an adapter[\s\S]*merge_and_unload"):
        load_model(str(folder))
    for path in (tmp_path / "x.gguf", folder / "x.gguf"):
        path.write_bytes(b"GGUF")
        for given in (path, path.parent if path.parent == folder else path):
            with pytest.raises(ModelError, match=r"GGUF weights \(x.gguf\)[\s\S]*gguf_file"):
                load_model(str(given))


def test_an_adapter_beside_weights_is_not_passed_over(folder: Path, shards: Path) -> None:
    for path in (folder, shards):
        (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.warns(MoescopeWarning, match="adapter is not applied"):
            load_model(str(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_experts_that_do_not_fit(family: str, tmp_path: Path) -> None:
    folder = save(build(family), tmp_path)
    whole = json.loads((folder / "config.json").read_text())
    experts = next(
        name for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts") if name in whole
    )
    selected = next(name for name in ("num_experts_per_tok", "moe_k", "moe_topk") if name in whole)
    for changes in ({experts: 0}, {selected: 0}, {selected: -1}, {selected: whole[experts] + 1}):
        (folder / "config.json").write_text(json.dumps({**whole, **changes}))
        with pytest.raises(ModelError):
            load_model(str(folder))


def test_counts_of_experts_are_named(folder: Path) -> None:
    for changes, said in (
        ({"num_experts_per_tok": 0}, "sends each token to 0 of 8 experts"),
        ({"num_experts_per_tok": 9}, "sends each token to 9 of 8 experts"),
        ({"num_experts_per_tok": 3, "num_local_experts": 0}, "0 routed experts|not a Mixture-of-Experts"),
        ({"num_hidden_layers": 0, "num_local_experts": 8}, r"num_hidden_layers .* is 0[\s\S]*at least one block"),
        ({"num_hidden_layers": 10**6}, r"is 1000000[\s\S]*at most 1,024"),
        ({"num_hidden_layers": 9}, "declares 9 blocks, its tensors are of 3"),
        ({"num_hidden_layers": "3"}, r"is '3'[\s\S]*a whole number"),
    ):
        edit(folder / "config.json", **changes)
        with pytest.raises(ModelError, match=said):
            load_model(str(folder))


@pytest.mark.parametrize("wrong", ["x", -1, 1.5, [], {}, [[1]], True, None])
@pytest.mark.parametrize("name", ["hidden_size", "num_experts", "num_attention_heads", "rope_parameters", "vocab_size"])
def test_values_of_wrong_types_are_refused_or_change_nothing(folder: Path, name: str, wrong: Any) -> None:
    edit(folder / "config.json", **{name: wrong})
    try:
        load_model(str(folder))
    except ModelError as error:
        assert error.expected is not None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kept", [0, 1, 9, 0.5])
def test_files_cut_short(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(ModelError, match=r"can't be read|has 0 bytes|can't be used"):
        _ = load_model(str(folder)).tokenizer


def test_weights_that_nobody_declared_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(MoescopeWarning, match="q_proj.bias"):
        load_model(str(folder))


def test_more_weights_declared_than_there_are(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=3_000_000)
    with pytest.raises(ModelError, match=r"declares .* weights .* its files hold"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_a_declared_dtype_it_is_the_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    for kind, size in (("whole", "5GB"), ("sharded", "15KB")):
        folder = save(build("mixtral", dtype=dtype), tmp_path / kind, max_shard_size=size)
        config = json.loads((folder / "config.json").read_text())
        del config["dtype"]
        (folder / "config.json").write_text(json.dumps(config))
        assert load_model(str(folder)).dtype == dtype
        assert inspect_checkpoint(str(folder)).dtype == dtype
        assert load_model(str(folder), dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("wrong", [5, 1.5, ["nano"], {"a": 1}, None, b"nano"])
def test_names_of_wrong_types(wrong: Any) -> None:
    with pytest.raises(UsageError, match="name_or_path is a"):
        load_model(wrong)


@pytest.mark.parametrize("wrong", [1, "1", [1.0], ["1"], [True], [None]])
def test_layers_of_wrong_types(whole: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"layers[=`]"):
        load_model(str(whole), layers=wrong)


def test_a_tokenizer_goes_with_a_loaded_model_only(whole: Path) -> None:
    with pytest.raises(UsageError, match="a tokenizer was given for the checkpoint"):
        load_model(str(whole), tokenizer=tokenizer())


@pytest.mark.parametrize(
    ("name", "is_inner"),
    [
        ("model.safetensors", True),
        ("part/model.safetensors", True),
        ("..model", True),
        ("../x", False),
        ("a/../../x", False),
        ("/x", False),
        ("C:\\x", False),
        ("..\\x", False),
        ("~/x", False),
        ("a\0b", False),
        ("", False),
        (5, False),
        ("x" * 2000, False),
    ],
)
def test_inner_names(name: Any, is_inner: bool) -> None:
    assert is_inner_name(name) is is_inner
