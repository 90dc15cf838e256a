"""A checkpoint's tokenizer against its model: what does not fit is named, what no text needs does no harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from moescope.corpora.tokenizing import TextEncoder
from moescope.errors import ModelError, MoescopeWarning
from moescope.models import load_model
from tests.families import VOCAB_SIZE, build, save, tokenizer

CODE = "import pathlib; pathlib.Path({marker!r}).touch()\n" + (
    "from transformers import PreTrainedTokenizerFast\nclass OwnTokenizer(PreTrainedTokenizerFast): ...\n"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("qwen3_moe"), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def without_tokenizer(folder: Path) -> Path:
    for path in folder.glob("*token*"):
        path.unlink()
    return folder


def test_a_padding_token_without_a_row_does_not_matter(folder: Path) -> None:
    made = tokenizer()
    made.add_tokens([f"<extra_{number}>" for number in range(20)])
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(folder)
    with pytest.warns(MoescopeWarning, match=r"6 tokens of .* have ids beyond the embedding's 272 rows"):
        model = load_model(str(folder))
    assert TextEncoder(model.tokenizer).padding_id < VOCAB_SIZE
    ids = model.tokenizer("text <extra_3>", return_tensors="pt").input_ids
    assert model.last_hidden(ids) is not None
    ids = model.tokenizer("text <extra_19>", return_tensors="pt").input_ids
    for run in (model.last_hidden, model.hf):
        with pytest.raises(ModelError, match=r"holds the token '<extra_19>' \(id 276\)"):
            run(ids)


def test_another_models_tokenizer_is_refused_once_text_is_read(folder: Path) -> None:
    words = {"<unk>": 0, "word": 1, **{f"w{number}": number + 2 for number in range(400)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    without_tokenizer(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    model = load_model(str(folder))
    model.expert_weights(0)
    with pytest.raises(ModelError, match=r"up to id 401, the model's embedding 272 rows[\s\S]*another model's"):
        _ = model.tokenizer


def test_a_small_vocabulary_and_an_end_that_is_none_are_named(folder: Path) -> None:
    words = {"<unk>": 7, "word": 0, "more": 1}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    without_tokenizer(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    with pytest.warns(MoescopeWarning) as raised:
        load_model(str(folder))
    said = " ".join(str(warning.message) for warning in raised)
    assert "has 3 tokens, the model's embedding 272 rows" in said
    assert "(id 0) is 'word' in its tokenizer, no special token" in said


def test_ids_with_holes_between_them(folder: Path) -> None:
    words = {"<unk>": 0, "word": 1, "far": 271}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    without_tokenizer(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    with pytest.warns(MoescopeWarning, match="has 3 tokens"):
        model = load_model(str(folder))
    encoder = TextEncoder(model.tokenizer)
    (ids,) = encoder.encode(["far"])
    assert ids.tolist() == [271]
    assert encoder.is_special(ids).tolist() == [False]


def test_the_reason_why_a_tokenizer_can_not_be_read_is_kept(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["type"] = "BPE2"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model = load_model(str(folder))
    model.expert_weights(0)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"tokenizer.json.*untagged enum ModelUntagged[\s\S]*update tokenizers"):
            _ = model.tokenizer


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model", "tiktoken.model"])
def test_files_that_are_no_tokenizer(folder: Path, name: str) -> None:
    without_tokenizer(folder)
    (folder / name).write_text("nothing")
    with pytest.raises(
        ModelError, match=r"the tokenizer of .* (can't be read|has no tokens|turns a word into no tokens)"
    ):
        _ = load_model(str(folder)).tokenizer


def own_tokenizer(folder: Path, keep_json: bool) -> Path:
    marker = folder.parent / "marker"
    (folder / "tokenization_own.py").write_text(CODE.format(marker=str(marker)))
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "OwnTokenizer", "auto_map": auto_map})
    )
    if not keep_json:
        (folder / "tokenizer.json").rename(folder / "own-tokenizer.json")
    return marker


def test_a_tokenizer_with_code_of_its_own(folder: Path) -> None:
    marker = own_tokenizer(folder, keep_json=False)
    model = load_model(str(folder))
    with pytest.raises(ModelError, match=r"code of its own \(tokenization_own.py\), which was not run") as error:
        _ = model.tokenizer
    assert "trust_remote_code=True" in str(error.value)
    assert not marker.exists()


def test_a_tokenizer_json_needs_no_code(folder: Path) -> None:
    marker = own_tokenizer(folder, keep_json=True)
    assert load_model(str(folder)).tokenizer("héllo").input_ids == tokenizer()("héllo").input_ids
    assert not marker.exists()
    with pytest.warns(MoescopeWarning, match="tokenizer of .* runs code of its own.*tokenization_own.py"):
        model = load_model(str(folder), trust_remote_code=True)
    assert marker.exists()
    assert type(model.tokenizer).__name__ == "OwnTokenizer"


def test_a_tokenizer_that_fits_says_nothing(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = load_model(str(folder))
    assert not [warning for warning in recwarn if issubclass(warning.category, MoescopeWarning)]
    assert not model.hf.get_input_embeddings()._forward_pre_hooks
    assert model.last_hidden(torch.tensor([[1, 2, 3]])) is not None
