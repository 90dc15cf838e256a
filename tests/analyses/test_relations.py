"""Relations between the tables of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

import moescope
from moescope.analyses.relations.analysis import RELATIONS, Relation, figure, frames, relate
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
    found = relate(tables, relations=given)
    assert [(related.relation.name, related.unit) for related in found] == [("pairs", "pairs"), ("experts", "experts")]
    above = np.triu_indices(9, 1)
    pairs, experts = found
    for position, layer in enumerate((1, 7)):
        first, second = (tables[t][v].values[position] for t, v in (("a", "cosine"), ("b", "lift")))
        expected = spearmanr((first + first.T)[above], (second + second.T)[above]).statistic
        assert pairs.layers[layer].value == pytest.approx(expected)
        assert experts.layers[layer].value == pytest.approx(1.0)
    rows = frames(found)
    assert rows["relations"].layer.tolist() == [1, 7, 1, 7]
    assert rows["relations"].num_values.tolist() == [36, 36, 9, 9]
    pooled = rows["relations_pooled"]
    assert pooled.num_layers_above_null.tolist() == [2, 2]
    assert pooled.num_layers_below_null.tolist() == [0, 0]
    assert pooled.ci_low[0] < pooled.rank_correlation[0] < pooled.ci_high[0]


def test_layers_that_only_one_table_has_are_left_out(tables: dict[str, xr.Dataset]) -> None:
    tables["a"] = tables["a"].assign_coords(layer=[7, 9])
    (found,) = relate(tables, relations=[Relation("pairs", "a.cosine", "b.lift")])
    assert list(found.layers) == [7]


def test_nothing_related_leaves_nothing() -> None:
    assert relate({}) == []
    assert frames([]) == {}


def test_a_real_run_measures_every_relation_its_tables_can_give(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    names = ["weights", "similarity", "coactivation", "usage", "contribution"]
    run = moescope.capture(model, small_corpus(tmp_path / "text"), names, 1500, [0, 1])
    assert {related.relation.name for related in run.relations} == {
        relation.name for relation in RELATIONS if not relation.second.startswith("atlas")
    }
    rows = dict(run.frames())
    assert set(rows["relations"].relation) == set(rows["relations_pooled"].relation)
    figure(run.relations, run.context).savefig(tmp_path / "relations.png")
    pair = rows["relations"].set_index(["relation", "layer"]).loc[("router rows, co-activation", 1)]
    above = np.triu_indices(8, 1)
    expected = spearmanr(
        run.tables["weights"]["router_cosine"].sel(layer=1).values[above],
        run.tables["coactivation"]["lift"].sel(layer=1).values[above],
    ).statistic
    assert pair.rank_correlation == pytest.approx(expected)
