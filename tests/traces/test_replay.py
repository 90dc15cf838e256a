"""A trace of ours: it answers what the model answers; what it can't is said; others can read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import moescope
from moescope.errors import UsageError
from moescope.models import load_model
from moescope.results.phases import of_all
from moescope.traces import writing
from tests.analyses.runs import small_corpus
from tests.families import build, save

NUM_TOKENS = 1500
QUESTIONS = ["usage", "vocabulary", "overlap", "coactivation", "paths", "entropy"]
FROM_LOGITS = {"auxiliary_loss"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(save(build("olmoe"), tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def folder(model, corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trace") / "own"
    moescope.record_trace(model, corpus, out, NUM_TOKENS, seed=3, predictions=True, with_text=True)
    return out


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3"])
def test_answers_are_those_of_the_model(family, corpus, tmp_path):
    """Byte for byte where they come from ids, tokens, documents, positions; else to the precision stored."""
    model = load_model(str(save(build(family, seed=5), tmp_path / "model")), device="cpu")
    moescope.record_trace(model, corpus, tmp_path / "trace", NUM_TOKENS, seed=3, predictions=True)
    expected = moescope.capture(model, corpus, QUESTIONS, NUM_TOKENS, seed=3, predictions=True)
    found = moescope.capture(moescope.open_trace(tmp_path / "trace"), analyses=QUESTIONS)
    assert list(found.frames) == list(expected.frames)
    for name, frame in expected.frames.items():
        same = frame.drop(columns=FROM_LOGITS & set(frame.columns))
        if name != "router_entropy":
            pd.testing.assert_frame_equal(found.frames[name][same.columns], same, check_exact=True, obj=name)
            assert found.frames[name][same.columns].to_csv() == same.to_csv()
    for key, statistic in found.statistics.items():
        for part, state in statistic.state.items():
            if key != "entropy" and part != "probabilities_LDE":
                assert torch.equal(state, expected.statistics[key].state[part]), (key, part)
    ours, theirs = found.tables["entropy"], expected.tables["entropy"]
    for measure in ("entropy", "selected_entropy", "top1_probability", "topk_mass", "margin", "boundary_margin"):
        np.testing.assert_allclose(ours[f"{measure}_mean"], theirs[f"{measure}_mean"], rtol=2**-10, err_msg=measure)
    assert found.manifest.seed == 3 and found.manifest.num_tokens == expected.manifest.num_tokens
    assert found.manifest.domains == expected.manifest.domains


def test_what_a_trace_lacks_is_noted_and_asked_by_name_an_error(model, corpus, folder, tmp_path):
    trace = moescope.open_trace(folder)
    run = moescope.capture(trace)
    assert set(QUESTIONS) <= set(run.tables) and "distributions" not in run.tables
    assert any(
        note.startswith("distributions was left out: distributions takes the model") for note in run.manifest.notes
    )
    assert any("mean router probability and auxiliary loss are left out" in note for note in run.manifest.notes)
    assert run.frames["usage_load"]["auxiliary_loss"].isna().all()
    with pytest.raises(UsageError, match="similarity takes the model"):
        moescope.capture(trace, analyses=["similarity"])
    with pytest.raises(UsageError, match="a corpus was given with a trace"):
        moescope.capture(trace, corpus)
    bare = _without(folder, tmp_path / "bare", ("token_id", "router_entropy", "weights", "margin"))
    for name, column in (("vocabulary", "token_id"), ("overlap", "token_id"), ("entropy", "router_entropy")):
        with pytest.raises(UsageError, match=f"no column {column}, which {name} takes"):
            moescope.capture(bare, analyses=[name])
    left = moescope.capture(bare)
    assert set(left.tables) == {"usage", "coactivation", "paths"}
    part = moescope.capture(_without(folder, tmp_path / "part", ("weights", "margin")), analyses=["entropy"])
    assert part.frames["router_entropy"]["margin_mean"].isna().all()
    assert part.frames["router_entropy"]["selected_entropy_mean"].isna().all()
    whole = run.frames["router_entropy"]
    pd.testing.assert_series_equal(part.frames["router_entropy"]["entropy_mean"], whole["entropy_mean"])
    assert any("margin left out" in note for note in part.manifest.notes)


def _without(folder: Path, out: Path, columns: tuple[str, ...]) -> moescope.traces.Trace:
    """The trace without some of its columns."""
    shutil.copytree(folder, out)
    facts = json.loads((out / "trace.json").read_text())
    facts["columns"] = [name for name in facts["columns"] if name not in columns]
    (out / "trace.json").write_text(json.dumps(facts))
    for part in (out / "tokens").glob("*.parquet"):
        table = pq.read_table(part)
        gone = [name for name in table.column_names if name in columns or name.rpartition("_")[0] in columns]
        pq.write_table(table.drop_columns(gone), part)
    return moescope.open_trace(out)


def test_layers_and_tokens_may_be_fewer(folder):
    trace = moescope.open_trace(folder)
    whole = moescope.capture(trace, analyses=["usage"])
    two = moescope.capture(trace, analyses=["usage"], layers=[0, -1])
    assert two.context.layers == (0, 3)
    every = whole.frames["usage"]
    expected = every[every["layer"].isin([0, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(two.frames["usage"][["layer", "domain", "num_selected"]],
                                  expected[["layer", "domain", "num_selected"]])  # fmt: skip
    fewer = moescope.capture(trace, analyses=["usage"], num_tokens=301)
    assert fewer.manifest.num_tokens == 301
    assert [domain.num_tokens for domain in fewer.manifest.domains] == [101, 100, 100]
    again = moescope.capture(trace, analyses=["usage"], num_tokens=301)
    assert again.frames["usage"].to_csv() == fewer.frames["usage"].to_csv()
    more = moescope.capture(trace, analyses=["usage"], num_tokens=10**6)
    assert any("the trace holds no more" in note for note in more.manifest.notes)
    with pytest.raises(UsageError, match="were not recorded"):
        moescope.capture(trace, analyses=["usage"], layers=[9])
    with pytest.raises(UsageError, match="3 domains"):
        moescope.capture(trace, analyses=["usage"], num_tokens=2)


def test_small_parts_and_row_groups_change_nothing(model, corpus, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 64)
    monkeypatch.setattr(writing, "PART", 200)
    moescope.record_trace(model, corpus, tmp_path / "small", NUM_TOKENS, seed=3, predictions=True, batch_tokens=128)
    trace = moescope.open_trace(tmp_path / "small")
    assert len(list((tmp_path / "small" / "tokens").iterdir())) > 4
    names = ["usage", "vocabulary", "paths"]
    found = moescope.capture(trace, analyses=names)
    expected = moescope.capture(moescope.open_trace(folder), analyses=names)
    for name, frame in expected.frames.items():
        assert found.frames[name].to_csv() == frame.to_csv(), name


@pytest.mark.slow
def test_generated_tokens_are_counted_apart(model, corpus, tmp_path):
    trace = moescope.record_trace(model, corpus, tmp_path / "t", 300, generate=5)
    plain = moescope.record_trace(model, corpus, tmp_path / "plain", 300)
    assert trace.phases == ("prompt", "generated") and plain.phases == ("prompt",)
    run = moescope.capture(trace, analyses=["usage", "paths"])
    usage = run.frames["usage"]
    assert list(usage.columns[:3]) == ["layer", "domain", "phase"]
    assert list(run.frames["paths"].columns[:2]) == ["layer", "phase"]
    counts = {phase: of.reset_index(drop=True) for phase, of in usage.groupby("phase", sort=False)}
    assert list(counts) == ["prompt", "generated", "all"]
    together = counts["prompt"]["num_selected"] + counts["generated"]["num_selected"]
    pd.testing.assert_series_equal(together, counts["all"]["num_selected"])
    # a document is one, however many of its tokens are of which phase
    pd.testing.assert_series_equal(counts["prompt"]["num_documents"], counts["all"]["num_documents"])
    expected = moescope.capture(plain, analyses=["usage"]).frames["usage"]
    pd.testing.assert_series_equal(counts["prompt"]["num_tokens"], expected["num_tokens"])
    assert "phase" not in expected.columns
    assert len(of_all(usage)) == len(expected)
    saved = run.save(tmp_path / "saved")
    assert {file.stem for file in (saved / "state").iterdir()} >= {"usage", "prompt_usage", "generated_usage"}
    assert "phase" in pd.read_csv(saved / "tables" / "usage.csv").columns
    _check_generated(model, trace)


def _check_generated(model, trace) -> None:
    """The generated tokens are those that transformers' own greedy search gives after the window."""
    block = next(trace.blocks([0]))
    for row in range(3):
        of_T = block.rows_T == row
        prompt = block.token_ids_T[of_T & ~block.generated_T]
        written = block.token_ids_T[of_T & block.generated_T]
        ids = torch.from_numpy(prompt[None])
        with torch.inference_mode():
            greedy = model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert greedy[0, len(prompt) :].tolist()[: len(written)] == written.tolist()
        positions = block.positions_T[of_T]
        assert np.diff(positions[-len(written) - 1 :]).tolist() == [1] * len(written)


def test_a_temperature_draws_by_the_seed(model, corpus, tmp_path):
    drawn = [
        moescope.record_trace(model, corpus, tmp_path / str(number), 90, generate=4, temperature=2.0, seed=seed)
        for number, seed in enumerate((1, 1, 2))
    ]
    assert drawn[0].facts.sample_hash == drawn[1].facts.sample_hash != drawn[2].facts.sample_hash
    with pytest.raises(UsageError, match="without `generate`"):
        moescope.record_trace(model, corpus, tmp_path / "x", 90, temperature=2.0)
    with pytest.raises(UsageError, match="less than the model's 256 positions"):
        moescope.record_trace(model, corpus, tmp_path / "x", 90, generate=256)


def test_the_facts_say_what_was_recorded(model, corpus, folder):
    facts = moescope.open_trace(folder).facts
    assert (facts.model, facts.family, facts.config_hash) == (model.name, "olmoe", model.config_hash)
    assert facts.router_rule == model.router.rule and facts.engine == "transformers"
    assert [domain.name for domain in facts.domains] == list(corpus.domains)
    assert facts.sampling["num_tokens"] == NUM_TOKENS and facts.seed == 3
    documents = pq.read_table(folder / "documents.parquet").to_pandas()
    assert documents["num_tokens"].sum() == facts.num_tokens and documents["document_hash"].is_unique
    texts = {document.document_id: document.text for name in corpus.domains for document in corpus.documents(name)}
    assert dict(zip(documents["document_id"], documents["text"], strict=True)).items() <= texts.items()


def _spoil_facts(folder: Path, **changes) -> None:
    facts = json.loads((folder / "trace.json").read_text())
    (folder / "trace.json").write_text(json.dumps(facts | changes))


def _rewrite(folder: Path, change) -> None:
    part = folder / "tokens" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(change(table), part)


def _larger_ids(table: pa.Table) -> pa.Table:
    column = table["expert_ids_0"].combine_chunks()
    flat = column.flatten().to_numpy().copy()
    flat[5] = 200
    made = pa.FixedSizeListArray.from_arrays(pa.array(flat), column.type.list_size)
    return table.set_column(table.schema.get_field_index("expert_ids_0"), "expert_ids_0", made)


def _cut(folder: Path) -> None:
    part = folder / "tokens" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-200])


HOSTILE = {
    "no facts": (lambda folder: (folder / "trace.json").write_text("{"), "trace.json cannot be read"),
    "another version": (lambda folder: _spoil_facts(folder, extra=1), "extra"),
    "layers twice": (lambda folder: _spoil_facts(folder, layers=[0, 0]), "layers are not ascending"),
    "a number too large": (lambda folder: _spoil_facts(folder, num_experts=10**12), "num_experts"),
    "cut off": (_cut, "cannot be read"),
    "no files": (lambda folder: shutil.rmtree(folder / "tokens"), "holds no tokens/part"),
    "an id of no expert": (lambda folder: _rewrite(folder, _larger_ids), "expert 200 at layer 0"),
    "another column": (lambda folder: _rewrite(folder, lambda table: table.drop_columns(["position"])), "position"),
    "rows missing": (lambda folder: _rewrite(folder, lambda table: table.slice(10)), "as trace.json says"),
    "tokens beyond": (lambda folder: _spoil_facts(folder, vocab_size=3), "has token ids"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_folders_that_are_damaged_or_hostile(name, folder, tmp_path):
    spoil, said = HOSTILE[name]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(UsageError, match=said):
        moescope.capture(moescope.open_trace(copy), analyses=["usage"])


def test_the_published_queries_run(folder):
    """The DuckDB and polars queries of docs/traces.md, as they stand there, give the counts of `usage`."""
    import duckdb
    import polars

    text = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    usage = moescope.capture(moescope.open_trace(folder), analyses=["usage"]).frames["usage"]
    expected = {
        (row.domain, row.expert): row.num_selected
        for row in usage[(usage["layer"] == 1) & (usage["domain"] != "all")].itertuples()
        if row.num_selected
    }
    sql = _block(text, "sql").replace("NAME", str(folder)).replace("expert_ids_7", "expert_ids_1")
    rows = duckdb.sql(sql).fetchall()
    assert {(domain, expert): number for domain, expert, number in rows} == expected
    code = _block(text, "python").replace("NAME", str(folder)).replace("expert_ids_7", "expert_ids_1")
    names = {"pl": polars}
    exec(code, names)
    assert {(domain, expert): number for domain, expert, number in names["counts"].rows()} == expected


def _block(text: str, language: str) -> str:
    return text.partition(f"```{language}\n")[2].partition("```")[0]
