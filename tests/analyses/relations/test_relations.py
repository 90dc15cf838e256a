"""Relations between the tables of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

import moescope
from moescope.analyses import registry
from moescope.analyses.relations.figures import panels
from moescope.analyses.relations.table import RELATIONS, Relation, layer_rows, pooled_rows, relate
from moescope.measures.correlation import correlate_experts, pooled
from tests.analyses.runs import small_corpus, tiny_model


@pytest.fixture
def tables() -> dict[str, xr.Dataset]:
    generator = np.random.default_rng(0)
    pair, one = ("layer", "expert", "other_expert"), ("layer", "expert")
    layers = {"layer": [1, 7]}
    alike = generator.normal(size=(2, 9, 9))
    effect = generator.normal(size=(2, 3, 9))
    return {
        "a": xr.Dataset({"cosine": (pair, alike), "norm": (one, effect[:, 1] * 3)}, coords=layers),
        "b": xr.Dataset(
            {
                "lift": (pair, alike + 0.1 * generator.normal(size=(2, 9, 9))),
                "effect": (("layer", "domain", "expert"), effect),
                "constant": (one, np.ones((2, 9))),
            },
            coords=layers | {"domain": ["x", "all", "y"]},
        ),
    }


def test_what_both_tables_have_is_related(tables: dict[str, xr.Dataset]) -> None:
    given = [
        Relation("pairs", "a.cosine", "b.lift"),
        Relation("experts", "a.norm", "b.effect", {"domain": "all"}),
        Relation("no such table", "c.norm", "b.effect"),
        Relation("no such variable", "a.cka", "b.lift"),
        Relation("no such domain", "a.norm", "b.effect", {"domain": "z"}),
        Relation("too many dimensions", "a.norm", "b.effect"),
        Relation("pairs with experts", "a.cosine", "a.norm"),
        Relation("nothing to rank", "a.norm", "b.constant"),
    ]
    table = relate(tables, relations=given)
    assert table["relation"].values.tolist() == table["unit"].values.tolist() == ["pairs", "experts"]
    assert all(values.attrs["definition"] and values.attrs["units"] for values in table.data_vars.values())
    above = np.triu_indices(9, 1)
    for position, layer in enumerate((1, 7)):
        first, second = (tables[t][v].values[position] for t, v in (("a", "cosine"), ("b", "lift")))
        expected = spearmanr((first + first.T)[above], (second + second.T)[above]).statistic
        at = table["rank_correlation"].sel(layer=layer)
        assert at.values == pytest.approx([expected, 1.0])
    rows = layer_rows(table)
    assert rows.layer.tolist() == [1, 7, 1, 7]
    assert rows.num_values.tolist() == [36, 36, 9, 9]
    overall = pooled_rows(table)
    assert overall.num_layers_above_null.tolist() == [2, 2]
    assert overall.num_layers_below_null.tolist() == [0, 0]
    parts = [correlate_experts(tables["a"].cosine.values[at], tables["b"].lift.values[at]) for at in (0, 1)]
    expected = pooled(parts)
    columns = ["rank_correlation", "ci_low", "ci_high", "null_low", "null_high", "p_value"]
    values = [expected.value, expected.low, expected.high, expected.null_low, expected.null_high, expected.p_value]
    assert overall.loc[0, columns].tolist() == pytest.approx(values)
    assert overall.ci_low[0] < overall.rank_correlation[0] < overall.ci_high[0]


def test_layers_that_only_one_table_has_are_left_out(tables: dict[str, xr.Dataset]) -> None:
    tables["a"] = tables["a"].assign_coords(layer=[7, 9])
    given = [Relation("pairs", "a.cosine", "b.lift"), Relation("experts", "a.cosine", "a.cosine")]
    table = relate(tables, relations=given)
    rows = layer_rows(table)
    assert rows[rows.relation == "pairs"].layer.tolist() == [7]
    assert rows[rows.relation == "experts"].layer.tolist() == [7, 9]
    assert pooled_rows(table).num_layers.tolist() == [1, 2]
    panels(table, "a model").canvas.draw()


def test_nothing_related_leaves_nothing() -> None:
    table = relate({})
    assert not table.data_vars
    relations = registry.find("relations")
    assert relations.frames(table, None) == {}  # type: ignore[arg-type]
    assert list(relations.figures(table, None)) == []  # type: ignore[arg-type]


def test_a_real_run_measures_every_relation_its_tables_can_give(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    names = ["weights", "similarity", "coactivation", "usage", "contribution"]
    run = moescope.capture(model, small_corpus(tmp_path / "text"), names, 1500, [0, 1])
    assert run.tables["relations"]["relation"].values.tolist() == [
        relation.name for relation in RELATIONS if not relation.second.startswith("atlas")
    ]
    rows = run.frames
    assert set(rows["relations"].relation) == set(rows["relations_pooled"].relation)
    run.figures["relations"].savefig(tmp_path / "relations.png")
    pair = rows["relations"].set_index(["relation", "layer"]).loc[("router rows, co-activation", 1)]
    above = np.triu_indices(8, 1)
    expected = spearmanr(
        run.tables["weights"]["router_cosine"].sel(layer=1).values[above],
        run.tables["coactivation"]["lift"].sel(layer=1).values[above],
    ).statistic
    assert pair.rank_correlation == pytest.approx(expected)
