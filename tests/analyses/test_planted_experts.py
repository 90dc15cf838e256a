"""Experts whose truth is known: a copy in disguise and one that gives nothing are named; random ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moescope
from moescope.analyses.similarity.analysis import Similarity
from moescope.errors import MoescopeWarning
from moescope.models import MoEModel, load_model
from moescope.models.weights import expert_weights
from moescope.run import Run
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import SOME_FAMILIES, build, save

LAYER, OF, COPY, SILENT = 2, 1, 6, 4


@torch.no_grad()
def disguise(experts, of: int, copy: int, *, signs: bool = True) -> None:
    """Expert `copy` becomes `of` with its hidden neurons permuted and, where that is free, half of their signs changed.

    The sign of a neuron changes in up (and its bias) and in down, not in the gate.
    """
    weights = expert_weights(experts)
    width = weights.up_EFM.shape[1]
    generator = torch.Generator().manual_seed(3)
    order_F = torch.randperm(width, generator=generator)
    signs_F = torch.ones(width)
    if signs:
        signs_F[torch.randperm(width, generator=generator)[: width // 2]] = -1
    weights.up_EFM[copy] = weights.up_EFM[of][order_F] * signs_F[:, None]
    weights.down_EMF[copy] = weights.down_EMF[of][:, order_F] * signs_F
    if weights.gate_EFM is not None:
        weights.gate_EFM[copy] = weights.gate_EFM[of][order_F]
    for bias_EF, change_F in ((weights.up_bias_EF, signs_F), (weights.gate_bias_EF, torch.ones(width))):
        if bias_EF is not None:
            bias_EF[copy] = bias_EF[of][order_F] * change_F
    if weights.down_bias_EM is not None:
        weights.down_bias_EM[copy] = weights.down_bias_EM[of]


def planted(folder: Path) -> MoEModel:
    made = build("olmoe")
    block = made.model.layers[LAYER].mlp
    disguise(block.experts, OF, COPY)
    with torch.no_grad():
        block.experts.down_proj[SILENT] = 0
        # Selected often: its row points to where inputs are.
        block.gate.weight[SILENT] = block.gate.weight[SILENT] * 2
    return load_model(str(save(made, folder)), device="cpu")


def capture(model: MoEModel, folder: Path) -> Run:
    corpus = small_corpus(folder)
    return moescope.capture(model, corpus, ["contribution", "weights", Similarity()], num_tokens=1500)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("planted")
    with pytest.warns(MoescopeWarning, match="the same output for every token of expert 4"):
        return capture(planted(folder / "model"), folder / "text")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("plain")
    return capture(tiny_model(folder / "model"), folder / "text")


def texts(run: Run, topic: str) -> list[str]:
    return [f"{finding.title}. {finding.text}" for finding in [*run.findings, *run.facts] if finding.topic == topic]


def test_a_copy_is_found_by_its_weights(run: Run) -> None:
    (row,) = run.frames["weights_duplicates"].to_dict("records")
    assert (row["layer"], row["expert"], row["other_expert"]) == (LAYER, OF, COPY)
    assert row["output_distance"] < 1e-5
    assert row["joined_matched_cosine"] == pytest.approx(1, abs=1e-5)
    assert abs(row["joined_cosine"]) < 0.2  # as stored, nothing is to be seen
    (text,) = [text for text in texts(run, "weights") if "duplicates" in text]
    assert text.startswith(f"Experts {OF} and {COPY} of layer {LAYER} are duplicates")


def test_a_copy_is_the_most_similar_pair(run: Run) -> None:
    (text,) = texts(run, "similarity")
    assert f"Most similar: experts {OF} and {COPY} of layer {LAYER}, 1" in text
    assert f"The same output for every token, up to a factor: experts {OF} and {COPY} of layer {LAYER}." in text


def test_an_expert_that_gives_nothing_is_silent(run: Run) -> None:
    (row,) = run.frames["contribution_silent"].to_dict("records")
    assert (row["layer"], row["expert"], row["output_norm_mean"]) == (LAYER, SILENT, 0)
    assert row["selection_frequency"] > 0.1
    marked = run.frames["contribution"].query("silent")[["layer", "expert"]].values.tolist()
    assert marked == run.frames["weights_experts"].query("silent")[["layer", "expert"]].values.tolist()
    assert marked == [[LAYER, SILENT]]
    (text,) = [text for text in texts(run, "contribution") if "silent" in text]
    assert text.startswith("1 of 32 experts is selected and silent")
    assert f"expert {SILENT} of layer {LAYER}" in text and "never selected: 0 experts" in text
    # Weights alone say so too; beside contribution it is said once.
    assert not [text for text in texts(run, "weights") if "silent" in text]


def test_random_experts_are_neither(plain: Run) -> None:
    assert not {"weights_duplicates", "contribution_silent"} & set(plain.frames)
    assert not plain.frames["contribution"]["silent"].any()
    assert not plain.frames["weights_experts"]["silent"].any()
    every = " ".join(text for topic in ("weights", "contribution", "similarity") for text in texts(plain, topic))
    assert "duplicates" not in every and "silent" not in every and "same output" not in every


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_copies_and_silent_experts_of_every_family(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    layer = model.layers[-1]
    weights = model.expert_weights(layer)
    disguise(model.experts(layer), 0, 2, signs=weights.sign_is_free)
    with torch.no_grad():
        weights.down_EMF[1] = 0
        if weights.down_bias_EM is not None:
            weights.down_bias_EM[1] = 0
    run = moescope.capture(model, None, ["weights"], layers=[layer])
    found = run.frames["weights_duplicates"]
    assert found[["layer", "expert", "other_expert"]].values.tolist() == [[layer, 0, 2]]
    assert found["joined_matched_cosine"].iloc[0] == pytest.approx(1, abs=1e-5)
    silent = run.frames["weights_experts"].query("silent")
    assert silent[["layer", "expert"]].values.tolist() == [[layer, 1]]
    (text,) = [text for text in texts(run, "weights") if "silent" in text]
    assert f"expert 1 of layer {layer}" in text


@torch.no_grad()
def test_which_changes_of_weights_are_none_of_the_function(tmp_path: Path) -> None:
    """Up scaled by what down is divided by is the same expert; a change of the gate's sign is another."""
    model = tiny_model(tmp_path)
    layer_of = {}
    for layer, change in enumerate(("scaled", "gate", "up alone")):
        weights = model.expert_weights(layer)
        disguise(model.experts(layer), 3, 5)
        if change == "scaled":
            weights.up_EFM[5] *= 2
            weights.down_EMF[5] /= 2
        elif change == "gate":
            weights.gate_EFM[5] *= -1
        else:
            weights.up_EFM[5] *= -1
        layer_of[change] = layer
    found = moescope.capture(model, None, ["weights"]).frames["weights_duplicates"]
    assert found[["layer", "expert", "other_expert"]].values.tolist() == [[layer_of["scaled"], 3, 5]]
    assert found["joined_matched_cosine"].iloc[0] < 0.99
