"""Checkpoints from the hub: huggingface_hub's own client against a server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from moescope.errors import ModelError
from moescope.models import load_model
from tests.families import build, save
from tests.models.hub_server import COMMIT, serving

REPOSITORY = "someone/tiny-moe"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("olmoe"), tmp_path_factory.mktemp("olmoe"), max_shard_size="15KB")


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path, *, offline: bool = False) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE do, for a process that has read them already."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.close_session()


def shards(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith(".safetensors")}


def test_only_the_shards_of_the_layers_asked_are_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_map = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    above = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")
    needed = {shard for key, shard in weight_map.items() if key.startswith(above)}
    every = set(weight_map.values())
    assert needed < every
    with serving(REPOSITORY, checkpoint) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        found = load_model(REPOSITORY, layers=[1])
        assert shards(hub.fetched) == needed
        hub.fetched.clear()
        load_model(REPOSITORY, layers=[1])
        assert not shards(hub.fetched)
        whole = load_model(REPOSITORY, revision=COMMIT)
        assert shards(hub.fetched) == every - needed
    assert found.layers == (0, 1)
    assert whole.layers == (0, 1, 2, 3)
    assert found.revision == whole.revision == COMMIT
    assert len(found.tokenizer) == 257
    local = load_model(str(checkpoint), layers=[1])
    assert local.revision is None
    assert local.config_hash == found.config_hash
    for ours, theirs in zip(found.blocks.parameters(), whole.blocks[:2].parameters(), strict=True):
        assert ours.equal(theirs)
    # Once in the cache, no network is needed.
    for offline in (False, True):
        use_hub(monkeypatch, NOWHERE, tmp_path, offline=offline)
        assert load_model(REPOSITORY, layers=[1]).revision == COMMIT


def test_what_the_hub_does_not_have(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(REPOSITORY, checkpoint) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        with pytest.raises(ModelError, match="no folder and no hub repository someone/else") as error:
            load_model("someone/else")
        assert error.value.exit_code == 2
        assert "check the spelling" in str(error.value)
        with pytest.raises(ModelError, match="no such revision"):
            load_model(REPOSITORY, revision="no-such-branch")


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_error_says_how_to_use_a_local_copy(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path, offline=offline)
    with pytest.raises(ModelError) as error:
        load_model(REPOSITORY)
    assert error.value.exit_code == 2
    assert f"hf download {REPOSITORY} --local-dir FOLDER" in str(error.value)


def test_shards_that_are_not_in_the_cache_and_can_not_be_fetched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(REPOSITORY, checkpoint) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        load_model(REPOSITORY, layers=[1])
    use_hub(monkeypatch, NOWHERE, tmp_path, offline=True)
    with pytest.raises(ModelError, match=r"weight files|can't be reached"):
        load_model(REPOSITORY, layers=[3])
