"""Profiles of a real run: the published form, what it says against the tables, text that acts nowhere."""

from __future__ import annotations

import dataclasses
import io
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from pydantic import ValidationError

import moescope
from moescope.analyses.profile import figures as profile_figures
from moescope.analyses.profile.analysis import FOLDER, INDEX, LINES, Profile
from moescope.analyses.profile.records import ProfileMaker
from moescope.analyses.profile.schema import Context, ExpertProfile, json_schema
from moescope.errors import UsageError
from tests.analyses.runs import NUM_TOKENS, routings_of, small_corpus, tiny_model

DOCS = Path(__file__).parents[3] / "docs"
HOSTILE = "<script>alert(1)</script> $x_{^$ [bold]😀[/bold] \u202eevil \x1b[31m 漢 &amp;"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpora") / "shelf")


@pytest.fixture(scope="module")
def run(model, corpus):
    return moescope.capture(model, corpus, [Profile(num_pages=1)], NUM_TOKENS)


@pytest.fixture(scope="module")
def files(run):
    return dict(run.files)


@pytest.fixture(scope="module")
def profiles(files):
    return [ExpertProfile.model_validate_json(line) for line in files[LINES].splitlines()]


def test_one_line_for_every_expert_and_the_index_finds_it(files, profiles):
    assert set(files) == {LINES, INDEX, "findings.json", "facts.json"}
    assert [(p.layer, p.expert) for p in profiles] == [(layer, expert) for layer in range(4) for expert in range(8)]
    raw = files[LINES].encode("utf-8")
    index = pd.read_csv(io.StringIO(files[INDEX]))
    for entry, profile in zip(index.itertuples(), profiles, strict=True):
        found = json.loads(raw[entry.byte_offset : entry.byte_offset + entry.num_bytes])
        assert found["schema_version"] == "1.1"
        assert (found["layer"], found["expert"]) == (entry.layer, entry.expert) == (profile.layer, profile.expert)
        assert found["label"]["text"] == entry.label
        assert found["label"]["balanced_accuracy"] == pytest.approx(entry.balanced_accuracy)


def test_nothing_is_missing_from_a_run_of_the_whole_model(profiles):
    for profile in profiles:
        assert profile.missing == {}
        assert profile.tokens.predicted is not None
        assert profile.promoted.promoted[0].logit >= profile.promoted.promoted[-1].logit
        assert profile.nearest_by_output.nearest[0].expert != profile.expert
        assert profile.nearest_by_weight.nearest
        assert len(profile.effect.domains) == 3
        assert profile.saliency > 0


def test_what_is_no_profile_is_refused(profiles):
    found = json.loads(profiles[0].model_dump_json())
    for change in ({"schema_version": "0.9"}, {"nickname": "Fred"}, {"layer": "first"}):
        with pytest.raises(ValidationError):
            ExpertProfile.model_validate(found | change)
    context = found["contexts"][0]
    with pytest.raises(ValidationError, match="one length"):
        Context.model_validate(context | {"values": context["values"][:-1]})


def test_the_schema_in_the_docs_is_that_of_the_code():
    script = runpy.run_path(str(DOCS / "make_profile_schema.py"))
    assert (DOCS / "profile.schema.json").read_text(encoding="utf-8") == script["text"]()
    described = json_schema()["properties"]
    assert {"label", "contexts", "effect", "nearest_by_weight", "sample"} <= set(described)


def test_numbers_against_the_records_themselves(model, corpus, profiles):
    records = routings_of(model, corpus, layers=[0, 1, 2, 3])
    mine = {(p.layer, p.expert): p for p in profiles}
    of_layer = [record for record in records if record.layer == 2]
    tokens = sum(record.tokens.num_tokens for record in of_layer)
    for expert in range(8):
        profile = mine[2, expert]
        own = [(record.expert_ids_TK == expert).any(dim=1) for record in of_layer]
        selected = sum(int(taken.sum()) for taken in own)
        assert profile.usage.num_selected == selected
        assert profile.sample.num_tokens == tokens
        assert profile.usage.selection_frequency == pytest.approx(selected / tokens, rel=1e-5)
        assert profile.usage.load == pytest.approx(selected / (tokens * 2 / 8), rel=1e-5)
        for place, domain in enumerate(profile.domains):
            of_domain = [record.tokens.domain_ids_T == place for record in of_layer]
            assert domain.num_tokens == sum(int(mask.sum()) for mask in of_domain)
            both = sum(int((mask & taken).sum()) for mask, taken in zip(of_domain, own, strict=True))
            assert domain.num_selected == both
        first = [record.expert_ids_TK[:, 0] == expert for record in of_layer]
        share = sum(int(mask.sum()) for mask in first) / selected
        assert profile.router.first_rank_share == pytest.approx(share, rel=1e-5)
        together = [
            ((record.expert_ids_TK == expert).any(1) & (record.expert_ids_TK == other.expert).any(1)).sum()
            for other in profile.coactivated[:1]
            for record in of_layer
        ]
        if profile.coactivated:
            assert profile.coactivated[0].num_together == sum(map(int, together))
    assert sorted(mine[2, expert].usage.rank for expert in range(8)) == list(range(8))


def test_contexts_show_the_text(run, profiles):
    decode = run.context.model.tokenizer.decode
    for profile in profiles[:8]:
        for context in profile.contexts:
            assert context.text == decode(context.token_ids)
            assert context.values[context.target] == context.value
            assert context.value == max(context.value, 0) > 0
            assert len({c.document_hash for c in profile.contexts}) == len(profile.contexts)
        assert [c.value for c in profile.contexts] == sorted((c.value for c in profile.contexts), reverse=True)


def test_an_expert_no_token_chose_says_so_and_can_be_drawn(model, corpus, tmp_path):
    router = model.seams[1].router
    before = router.weight.detach().clone()
    # Of two opposite rows one always gives more than 0, which is what row 5 gives: two pairs of them leave it no place.
    router.weight.data[[1, 3]] = -before[[0, 2]]
    router.weight.data[5] = 0.0
    records = routings_of(model, corpus, layers=[1], num_tokens=600)
    never = [e for e in range(8) if not any((record.expert_ids_TK == e).any() for record in records)]
    try:
        found = moescope.capture(model, corpus, [Profile(experts=tuple(range(8)))], 600, layers=[1], predictions=True)
    finally:
        router.weight.data.copy_(before)
    texts = [text for path, text in found.files.items() if path.startswith(FOLDER)]
    profiles = {p.expert: p for p in map(ExpertProfile.model_validate_json, texts)}
    unused = [expert for expert, profile in profiles.items() if profile.usage.num_selected == 0]
    assert unused == never
    assert unused, "the planted row was chosen after all"
    profile = profiles[unused[0]]
    assert profile.contexts == []
    assert profile.label is None
    assert {"contexts", "label", "promoted"} <= set(profile.missing)
    assert profile.usage.selection_frequency == 0
    profile_figures.page(profile, found.context).savefig(tmp_path / "unused.png", dpi=50)


def test_text_from_the_corpus_stays_text(model, tmp_path):
    draw = np.random.default_rng(0)
    for domain in ("plain", "<b>&$bold$"):
        for number in range(12):
            file = tmp_path / "shelf" / domain / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(" ".join(draw.permutation(HOSTILE.split(" "))) + f" {number}", "utf-8")
    corpus = moescope.load_corpus(str(tmp_path / "shelf"))
    run = moescope.capture(
        model, corpus, [Profile(experts=(0, 3), neighbors=False, effects=False)], 1500, layers=[1], predictions=True
    )
    folder = run.save(tmp_path / "out")
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == ["L01E00.json", "L01E03.json"]
    profile = ExpertProfile.model_validate_json((folder / FOLDER / "L01E03.json").read_text("utf-8"))
    assert {domain.name for domain in profile.domains} == {"plain", "<b>&$bold$"}
    whole = "".join(context.text for context in profile.contexts)
    assert any(piece in whole for piece in ("<script>", "$x_{^$", "😀", "\u202e", "漢"))
    shown = "".join(text for context in profile.contexts for text in context.tokens)
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert "nearest_by_output" in profile.missing
    page = dict(run.figures)["profile_L01E03"]
    drawn = " ".join(text.get_text() for text in page.findobj(Text))
    assert "<b>&$bold$" in drawn and "\u202e" not in drawn
    assert list(pd.read_parquet(folder / "tables" / "profile.parquet")["expert"]) == [0, 3]


def test_a_part_of_the_model_leaves_out_what_needs_its_head(corpus, tmp_path, model):
    run = moescope.capture(
        moescope.load_model(model.name, device="cpu", layers=[1]), corpus, [Profile(experts=(2,))], 900, layers=[1]
    )
    (text,) = [text for path, text in run.files.items() if path.startswith(FOLDER)]
    profile = ExpertProfile.model_validate_json(text)
    assert {"promoted", "effect", "tokens.predicted"} <= set(profile.missing)
    assert profile.nearest_by_output is not None


def test_experts_that_do_not_exist_are_refused(model, corpus):
    with pytest.raises(UsageError, match="no expert 8"):
        moescope.capture(model, corpus, [Profile(experts=(8,))], 500)


def test_figures(run, tmp_path, recwarn):
    figures = dict(run.figures)
    assert "profile_labels" in figures
    assert len(figures) == 2
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        figure.savefig(tmp_path / f"{name}.pdf")
    maker = ProfileMaker(run.tables["profile"], run.context)
    bare = maker.profile(0, 0).model_copy(
        update={"effect": None, "promoted": None, "nearest_by_output": None, "nearest_by_weight": None, "label": None}
    )
    profile_figures.page(bare, run.context).savefig(tmp_path / "bare.png", dpi=50)
    many = dataclasses.replace(run.context, groups={})
    profile_figures.page(maker.profile(0, 1), many).savefig(tmp_path / "no-groups.png", dpi=50)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
