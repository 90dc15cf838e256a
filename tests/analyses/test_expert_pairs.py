"""Vocabulary, overlap, co-activation and paths of a real run: tables, frames, arrays, figures."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moescope
from moescope.corpora import Corpus
from moescope.models import MoEModel
from moescope.records import Routing
from moescope.run import Run
from moescope.statistics import type_counts
from tests.analyses.runs import NUM_TOKENS, routings_of, small_corpus, tiny_model
from tests.figures.drawing import undrawn

NAMES = ["vocabulary", "overlap", "coactivation", "paths"]
LAYERS = [0, 1, 3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: MoEModel, corpus: Corpus) -> Run:
    return moescope.capture(model, corpus, NAMES, NUM_TOKENS, LAYERS, predictions=True)


@pytest.fixture(scope="module")
def records(model: MoEModel, corpus: Corpus) -> list[Routing]:
    return routings_of(model, corpus, LAYERS)


@pytest.fixture(scope="module")
def plain(records: list[Routing]) -> dict[int, list[tuple[int, list[int]]]]:
    """By layer: token id and experts of every token, in the order of the run."""
    tokens: dict[int, list[tuple[int, list[int]]]] = {layer: [] for layer in LAYERS}
    for record in records:
        tokens[record.layer] += zip(record.tokens.token_ids_T.tolist(), record.expert_ids_TK.tolist(), strict=True)
    return tokens


@pytest.fixture(scope="module")
def frames(run: Run) -> Mapping[str, pd.DataFrame]:
    return run.frames


def test_files_have_the_names_of_their_analysis(run: Run, frames: Mapping[str, pd.DataFrame]) -> None:
    assert set(frames) == {
        *("vocabulary", "vocabulary_dependence", "vocabulary_top_tokens", "overlap", "overlap_pairs"),
        *("coactivation", "coactivation_pairs", "paths", "paths_top"),
    }
    assert set(run.arrays) == {"overlap", "coactivation", "paths"}


def test_vocabulary_rows(frames: Mapping[str, pd.DataFrame], plain: dict, records: list[Routing]) -> None:
    frame = frames["vocabulary"]
    assert len(frame) == len(LAYERS) * 3 * 2
    for layer, top in itertools.product(LAYERS, (1, 2)):
        types, cells = Counter(), Counter()
        for token, experts in plain[layer]:
            types[token] += 1
            cells.update((token, expert) for expert in experts[:top])
        shares = [max(cells[x, e] for e in range(8)) / n for x, n in types.items() if n >= 10]
        row = frame[(frame.layer == layer) & (frame.reading == "input") & (frame.ranks == ("top-1", "top-K")[top - 1])]
        assert row.vocabulary_specialization.item() == pytest.approx(np.mean(shares))
        assert row.num_types.item() == len(shares)
        assert row.num_tokens.item() == len(plain[layer])
        assert row.min_count.item() == 10
    num_next = sum(int((record.tokens.next_token_ids_T >= 0).sum()) for record in records if record.layer == 0)
    assert num_next < len(plain[0])
    assert (frame[frame.reading == "next"].num_tokens == num_next).all()
    assert (frame[frame.reading == "predicted"].num_tokens == len(plain[0])).all()


def test_top_tokens_are_readable_and_those_of_the_counts(frames: Mapping[str, pd.DataFrame], plain: dict) -> None:
    top = frames["vocabulary_top_tokens"]
    assert set(top.reading) == {"input", "predicted", "next"}
    first = top[(top.layer == 1) & (top.reading == "input") & (top.order == "count") & (top["rank"] == 0)]
    for row in first.itertuples():
        counts = Counter(token for token, experts in plain[1] if row.expert in experts)
        assert row.num_selected == max(counts.values()) == counts[row.token_id]
    texts = dict(zip(top.token_id, top.token, strict=True))
    assert "␣" in texts.values()
    assert all(text and text.isprintable() for text in texts.values())


def test_overlap_rows(frames: Mapping[str, pd.DataFrame], plain: dict) -> None:
    frame, pairs = frames["overlap"], frames["overlap_pairs"]
    for layer in LAYERS:
        sets = [set(experts) for _, experts in plain[layer]]
        values = []
        for i, j in itertools.combinations(range(8), 2):
            either, both = sum(i in s or j in s for s in sets), sum(i in s and j in s for s in sets)
            if either:
                values.append(both / either)
            row = pairs[(pairs.layer == layer) & (pairs.measure == "jaccard")]
            row = row[(row.expert == i) & (row.other_expert == j)]
            if len(row):
                assert row.overlap.item() == pytest.approx(both / either)
        row = frame[(frame.layer == layer) & (frame.measure == "jaccard")]
        assert row["mean"].item() == pytest.approx(np.mean(values))
        assert row["num_pairs"].item() == len(values)
    assert set(frame.measure) == {"jaccard", "overlap_coefficient", "weighted_jaccard"}
    assert (pairs.overlap >= 0).all()
    assert (pairs.overlap <= 1).all()
    excess = (pairs.overlap - pairs.overlap_chance).groupby([pairs.layer, pairs.measure])
    assert excess.apply(lambda group: group.is_monotonic_decreasing).all()


def test_coactivation_rows(frames: Mapping[str, pd.DataFrame], plain: dict) -> None:
    pairs = frames["coactivation_pairs"]
    assert len(pairs)
    for row in pairs.itertuples():
        sets = [set(experts) for _, experts in plain[row.layer]]
        alone, other = sum(row.expert in s for s in sets), sum(row.other_expert in s for s in sets)
        both = sum(row.expert in s and row.other_expert in s for s in sets)
        assert (row.num_selected, row.other_num_selected, row.num_together) == (alone, other, both)
        assert row.coactivation == pytest.approx(both / alone)
        assert row.coactivation_reverse == pytest.approx(both / other)
        assert row.lift == pytest.approx(len(sets) * both / (alone * other))
        assert row.num_together_chance >= 20
    assert pairs.groupby("layer").lift.apply(lambda lifts: lifts.is_monotonic_decreasing).all()


def test_paths_rows(frames: Mapping[str, pd.DataFrame], plain: dict) -> None:
    frame, top = frames["paths"], frames["paths_top"]
    assert frame[["layer", "next_layer"]].values.tolist() == [[0, 1], [1, 3]]
    for row in top.itertuples():
        steps = zip(plain[row.layer], plain[row.next_layer], strict=True)
        before, after, both, first = 0, 0, 0, 0
        for (_, ours), (_, theirs) in steps:
            before += row.expert in ours
            after += row.next_expert in theirs
            both += row.expert in ours and row.next_expert in theirs
            first += row.expert == ours[0] and row.next_expert == theirs[0]
        assert (row.num_paths, row.top1_num_paths) == (both, first)
        assert row.transition == pytest.approx(both / before)
        assert row.lift == pytest.approx(both * len(plain[0]) / before / after)
    assert (frame.top1_nmi > frame.top1_nmi_chance).all()


def test_figures_are_drawn_and_saved(run: Run, tmp_path: Path) -> None:
    figures = dict(run.figures)
    apart = np.where(np.eye(8, dtype=bool), np.nan, 1.0)
    for name, values in {
        "vocabulary_specialization": run.tables["vocabulary"]["vocabulary_specialization"],
        "overlap_occurrences": run.tables["overlap"]["jaccard"] * apart,
        "overlap_vocabulary": run.tables["overlap"]["weighted_jaccard"] * apart,
        "paths_flows": run.tables["paths"]["top1_transition"],
    }.items():
        assert undrawn(figures[name], values) == [], name
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        texts = [text.get_text() for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label)]
        assert any(texts) or figure.get_supxlabel()
    assert list(figures) == [
        *("vocabulary_specialization", "overlap_by_layer", "overlap_occurrences", "overlap_vocabulary"),
        *("coactivation_by_layer", "coactivation_lift", "paths_information", "paths_flows", "paths_lift"),
    ]


def test_predicted_tokens_are_left_out_where_the_model_is_not_run_to_its_end(tmp_path: Path) -> None:
    model, corpus = tiny_model(tmp_path / "model"), small_corpus(tmp_path / "text")
    run = moescope.capture(model, corpus, ["vocabulary", "paths"], 600, [1])
    frames = run.frames
    assert set(frames["vocabulary"].reading) == {"input", "next"}
    assert not len(frames["paths"])
    assert not run.arrays
    figures = run.figures
    assert set(figures) == {"vocabulary_specialization"}
    printed = " ".join(text.get_text() for text in figures["vocabulary_specialization"].texts)
    assert "predicted" in printed


def test_one_expert_per_token_has_no_pairs_and_no_second_ranks(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", num_experts_per_tok=1)
    run = moescope.capture(model, small_corpus(tmp_path / "text"), NAMES, 900, [0, 2])
    frames = run.frames
    assert set(frames["vocabulary"].ranks) == {"top-K"}
    assert (frames["overlap"][frames["overlap"].measure == "jaccard"]["mean"] == 0).all()
    assert not len(frames["coactivation_pairs"])
    for name, figure in run.figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=40)


def test_a_vocabulary_too_large_for_memory_is_pooled_with_a_warning(
    run: Run, model: MoEModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for 40 cells of each layer, only some types are counted singly; the rest is told by a warning."""
    monkeypatch.setattr(type_counts, "MAX_BYTES", 40 * 8 * len(LAYERS))
    with pytest.warns(moescope.errors.MoescopeWarning, match=r"of the positions are of token types .* not counted"):
        again = moescope.capture(model, corpus, ["vocabulary", "overlap"], NUM_TOKENS, LAYERS, predictions=True)
    ours, whole = again.tables["vocabulary"], run.tables["vocabulary"]
    assert (ours["num_tokens"] == whole["num_tokens"]).all()
    assert (ours["num_types_seen"] < whole["num_types_seen"]).all()
    assert (ours["num_tokens_pooled"] > 0).all() and not whole["num_tokens_pooled"].any()


def test_tokens_are_named_by_their_ids_where_there_is_no_tokenizer(run: Run) -> None:
    context = dataclasses.replace(run.context, model=dataclasses.replace(run.context.model, tokenizer=None))
    table = run.analyses["vocabulary"].table(run.statistics, context)
    ids, texts = table["token_id"].values.ravel(), table["token"].values.ravel()
    assert [text for text in texts if text] == [f"⟨id {token_id}⟩" for token_id in ids if token_id >= 0]


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_figures_leave_the_table_as_it_was(run: Run, name: str) -> None:
    analysis, table = run.analyses[name], run.tables[name]
    before = table.copy(deep=True)
    analysis.frames(table, run.context)
    analysis.arrays(table, run.context)
    for _, draw in analysis.figures(table, run.context):
        draw()
    assert table.identical(before)
