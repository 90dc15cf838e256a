"""Router saturation of two checkpoints of a model trained here, against a plain loop."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moescope.analyses.saturation.analysis import SaturationRun, saturation, source_of
from moescope.corpora import Corpus
from moescope.errors import ModelError, UsageError
from moescope.models import load_model
from moescope.statistics.saturation import RouterSaturation
from tests.analyses.runs import routings_of, small_corpus
from tests.families import build, save, tokenizer
from tests.figures.drawing import undrawn

LAYERS = [0, 2, 3]
NUM_TOKENS = 2000


def train(folder: Path) -> dict[str, Path]:
    """Trains a tiny OLMoE for 30 steps on a few lines and keeps it after 2, 10 and all of them."""
    model = build("olmoe").train()
    lines = [f"{number} apples and {number + 1} pears make {2 * number + 1} fruits. " * 3 for number in range(64)]
    ids_BS = torch.tensor([ids[:64] for ids in tokenizer()(lines).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for step in range(1, 31):
        batch_BS = ids_BS[torch.randperm(len(ids_BS), generator=generator)[:8]]
        optimizer.zero_grad()
        model(input_ids=batch_BS, labels=batch_BS).loss.backward()
        optimizer.step()
        if step in (2, 10, 30):
            kept[f"step-{step}"] = save(model, folder / f"step-{step}")
    return kept


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(checkpoints: dict[str, Path], corpus: Corpus) -> SaturationRun:
    final = load_model(str(checkpoints["step-30"]), device="cpu")
    earlier = [checkpoints["step-2"], str(checkpoints["step-10"])]
    return saturation(final, earlier, corpus, num_tokens=NUM_TOKENS, layers=LAYERS, shares=[5, 25], batch_tokens=700)


def test_saturation_is_that_of_a_plain_loop(run: SaturationRun, checkpoints: dict[str, Path], corpus: Corpus) -> None:
    final = routings_of(load_model(str(checkpoints["step-30"]), device="cpu"), corpus, LAYERS, NUM_TOKENS)
    for name in ("step-2", "step-10"):
        earlier = routings_of(load_model(str(checkpoints[name]), device="cpu"), corpus, LAYERS, NUM_TOKENS)
        for layer in LAYERS:
            shared, first = [], []
            for ours, theirs in zip(earlier, final, strict=True):
                if ours.layer != layer:
                    continue
                for a, b in zip(ours.expert_ids_TK.tolist(), theirs.expert_ids_TK.tolist(), strict=True):
                    shared.append(len(set(a) & set(b)) / 2)
                    first.append(a[0] == b[0])
            at = run.table.sel(checkpoint=name, layer=layer)
            assert int(at.num_tokens) == len(shared) == NUM_TOKENS
            # A token at the edge between two experts may fall either way when batches are cut elsewhere.
            assert float(at.topk_saturation) == pytest.approx(np.mean(shared), abs=1.5 / NUM_TOKENS)
            assert float(at.top1_saturation) == pytest.approx(np.mean(first), abs=1.5 / NUM_TOKENS)


def test_routers_come_nearer_to_the_final_ones_as_training_goes_on(run: SaturationRun) -> None:
    early, late = run.table.topk_saturation.mean("layer").values
    assert float(run.table.topk_saturation_chance[0, 0]) == 2 / 8
    assert 2 / 8 < early < late < 1


def test_rows(run: SaturationRun) -> None:
    frame = run.frames["saturation"]
    assert frame[["checkpoint", "layer"]].values.tolist() == [[c, n] for c in ("step-2", "step-10") for n in LAYERS]
    assert frame.share_of_training_percent.tolist() == [5, 5, 5, 25, 25, 25]
    assert {"num_tokens", "topk_saturation", "topk_saturation_chance", "topk_saturation_independent"} <= set(frame)
    assert {"top1_saturation", "top1_saturation_chance", "top1_saturation_independent"} <= set(frame)


def test_the_final_model_agrees_with_itself(checkpoints: dict[str, Path], corpus: Corpus) -> None:
    final = load_model(str(checkpoints["step-30"]), device="cpu")
    run = saturation(final, [final], corpus, num_tokens=300)
    assert (run.table.topk_saturation == 1).all()
    assert (run.table.top1_saturation == 1).all()
    assert list(run.figures) == ["saturation_by_layer"]


def test_figures_draw_the_table(run: SaturationRun) -> None:
    assert list(run.figures) == ["saturation_over_training", "saturation_by_layer"]
    for name, figure in run.figures.items():
        shares = run.table.topk_saturation
        missing = min((undrawn(figure, scale * shares) for scale in (1, 100)), key=len)
        assert missing == [], name


def test_a_run_is_an_outcome(run: SaturationRun, tmp_path: Path) -> None:
    manifest = run.manifest
    assert (manifest.command, manifest.layers, manifest.num_tokens) == ("saturation", LAYERS, NUM_TOKENS)
    assert manifest.options["labels"] == ["step-2", "step-10"]
    assert manifest.options["shares"] == (5, 25)
    assert 0 < manifest.pass_seconds <= manifest.total_seconds
    folder = run.save(tmp_path / "out")
    assert len(pd.read_csv(folder / "tables" / "saturation.csv")) == 2 * len(LAYERS)
    again = RouterSaturation.load(folder / "state" / "saturation_1.safetensors")
    assert again.compute().identical(run.statistics["step-10"].compute())
    assert set(run.tables) == {"saturation"}


def test_what_is_no_earlier_state_is_refused(checkpoints: dict[str, Path], corpus: Corpus, tmp_path: Path) -> None:
    final = load_model(str(checkpoints["step-30"]), device="cpu")
    other = save(build("olmoe", num_experts=4), tmp_path / "four")
    with pytest.raises(ModelError, match="experts per layer: 4"):
        saturation(final, [other], corpus, num_tokens=300)
    with pytest.raises(ModelError, match="family mixtral"):
        saturation(final, [save(build("mixtral"), tmp_path / "mixtral")], corpus, num_tokens=300, layers=[1])
    renamed = tmp_path / "renamed"
    shutil.copytree(checkpoints["step-2"], renamed)
    file = renamed / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<|end|>", "<|stop|>"), "utf-8")
    with pytest.raises(ModelError, match="tokenizer has other tokens"):
        saturation(final, [renamed], corpus, num_tokens=300)
    with pytest.raises(ModelError, match="no folder"):
        saturation(final, [tmp_path / "nothing"], corpus, num_tokens=300)
    with pytest.raises(UsageError, match="no checkpoint"):
        saturation(final, [], corpus)
    with pytest.raises(UsageError, match="1 labels for 2 checkpoints"):
        saturation(final, list(checkpoints.values())[:2], corpus, labels=["early"])
    with pytest.raises(UsageError, match=r"one name.*\n.*`labels`"):
        saturation(final, [checkpoints["step-2"]] * 2, corpus)


def test_a_checkpoint_without_a_tokenizer_will_do(checkpoints: dict[str, Path], corpus: Corpus, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoints["step-10"] / name, bare)
    final = load_model(str(checkpoints["step-30"]), device="cpu")
    run = saturation(final, [bare], corpus, num_tokens=300, layers=[1])
    assert run.table.checkpoint.values.tolist() == ["bare"]
    assert 0 < float(run.table.topk_saturation[0, 0]) < 1


@pytest.mark.parametrize(
    ("checkpoint", "model", "expected"),
    [
        ("step5000-tokens20B", "allenai/OLMoE-1B-7B-0924", ("allenai/OLMoE-1B-7B-0924", "step5000-tokens20B")),
        ("@step5000", "allenai/OLMoE-1B-7B-0924", ("allenai/OLMoE-1B-7B-0924", "step5000")),
        ("allenai/OLMoE-1B-7B-0924@step5000", "nano", ("allenai/OLMoE-1B-7B-0924", "step5000")),
        ("someone/else", "allenai/OLMoE-1B-7B-0924", ("someone/else", None)),
        ("./not-there", "allenai/OLMoE-1B-7B-0924", ("not-there", None)),
        ("step-5", "nano", ("step-5", None)),
    ],
)
def test_how_a_checkpoint_is_named(checkpoint: str, model: str, expected: tuple[str, str | None]) -> None:
    assert source_of(checkpoint, model) == expected
