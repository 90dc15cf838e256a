"""The ablation of a tiny model's experts over a small folder of text, against plain passes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from moescope.analyses.ablation.analysis import AblationRun, ablate
from moescope.corpora import Sampler
from moescope.errors import MoescopeWarning, UsageError
from moescope.interventions import Ablate, intervening
from moescope.measures.constants import MIN_DOCUMENTS
from tests.analyses.runs import small_corpus, tiny_model

NUM_TOKENS = 1500


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(model, corpus) -> AblationRun:
    return ablate(model, corpus, layer=2, experts=[5, 3], num_controls=4, num_tokens=NUM_TOKENS, batch_tokens=700)


@torch.no_grad()
def losses(model, corpus) -> dict[str, tuple[float, int]]:
    """Nats and predicted tokens of each domain, by the family's own forward."""
    sums = dict.fromkeys(corpus.domains, (0.0, 0))
    for batch in Sampler(corpus, model.tokenizer, num_tokens=NUM_TOKENS, max_positions=model.max_positions):
        logp_NV = model.hf(input_ids=batch.input_ids_BS).logits.double().log_softmax(-1).flatten(0, 1)
        next_T, tokens = batch.tokens.next_token_ids_T, batch.tokens
        for place, row, following in zip(batch.keep_T.tolist(), tokens.rows_T.tolist(), next_T.tolist(), strict=True):
            if following >= 0:
                domain = corpus.domains[int(tokens.domain_ids_B[row])]
                nats, count = sums[domain]
                sums[domain] = nats - float(logp_NV[place, following]), count + 1
    return sums


def test_the_effect_is_that_of_two_plain_passes(run, model, corpus) -> None:
    before = losses(model, corpus)
    frame = run.frames["ablate"].set_index("domain")
    each = run.frames["ablate_controls"].set_index(["control", "domain"])
    assert list(frame.index) == ["all", *corpus.domains]
    for experts, effect in (
        ((3, 5), frame["delta_loss"]),
        (tuple(map(int, each.loc[(1, "all"), "experts"].split())), each.loc[1, "delta_loss"]),
    ):
        with intervening(model, [Ablate(2, expert) for expert in experts]):
            after = losses(model, corpus)
        for domain, (nats, count) in before.items():
            assert effect[domain] == pytest.approx((after[domain][0] - nats) / count, abs=1e-5)
        total = sum(after[d][0] - before[d][0] for d in before) / sum(count for _, count in before.values())
        assert effect["all"] == pytest.approx(total, abs=1e-5)
    for domain, (nats, count) in before.items():
        assert frame.num_tokens[domain] == count
        assert frame.loss[domain] == pytest.approx(nats / count, rel=1e-5)


def test_controls_and_excess(run) -> None:
    frame, each = run.frames["ablate"], run.frames["ablate_controls"]
    assert len(each) == 4 * len(frame)
    for row in frame.itertuples():
        controls = each.loc[each.domain == row.domain, "delta_loss"]
        assert row.delta_loss_control == pytest.approx(controls.mean())
        assert row.delta_loss_control_q95 == pytest.approx(np.quantile(controls, 0.95))
        assert row.num_controls_below == (controls < row.delta_loss).sum()
        assert row.excess == pytest.approx(row.delta_loss - controls.mean())
        known = np.isfinite(row.ci_low)
        assert known or row.num_documents < MIN_DOCUMENTS or row.effective_documents < 5
        assert not known or (row.num_documents >= MIN_DOCUMENTS and row.effective_documents >= 3)
    assert all(not set(control.experts) & {3, 5} for control in run.controls)


def test_a_run_is_an_outcome(run, tmp_path) -> None:
    manifest = run.manifest
    assert (manifest.command, manifest.layers, manifest.options["experts"]) == ("ablate", [2], (3, 5))
    assert manifest.options["controls"] == [list(control.experts) for control in run.controls]
    assert 0 < manifest.pass_seconds <= manifest.total_seconds
    for name, values in run.tables["ablate"].data_vars.items():
        assert {"units", "definition"} <= set(values.attrs), name
    folder = run.save(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tables" / "ablate.csv"), run.frames["ablate"])
    assert (folder / "figures" / "ablate.png").is_file()


def test_fewer_controls_than_asked_is_noted(model, corpus) -> None:
    with pytest.warns(MoescopeWarning, match="7 controls instead of 20"):
        run = ablate(model, corpus, layer=1, experts=[0], num_tokens=300)
    assert any("7 controls instead of 20" in note for note in run.manifest.notes)


def test_without_controls(model, corpus) -> None:
    run = ablate(model, corpus, layer=1, experts=[0], num_controls=0, num_tokens=300)
    frame = run.frames["ablate"]
    assert frame[["delta_loss_control", "excess", "excess_ci_low"]].isna().all(axis=None)
    assert frame["delta_loss"].notna().all()
    assert run.frames["ablate_controls"].empty
    assert list(run.figures) == ["ablate"]
    assert run.figures["ablate"].axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9, "experts": [0]}, "no MoE layer 9"),
        ({"layer": 1, "experts": [8]}, "no expert 8"),
        ({"layer": 1, "experts": [2, 2]}, "twice"),
        ({"layer": 1, "experts": []}, "`experts=\\(\\)`"),
        ({"layer": 1, "experts": [2], "num_controls": -1}, "`num_controls=-1`"),
    ],
)
def test_what_cannot_be_ablated(model, corpus, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        ablate(model, corpus, num_tokens=300, **options)
