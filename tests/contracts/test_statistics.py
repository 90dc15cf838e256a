"""What every statistic must satisfy, whatever it counts; the statistics are registered in `cases/`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import moescope
from moescope.errors import UsageError
from moescope.records import ExpertOutputs, Routing, TokenBatch
from moescope.statistics.base import Statistic
from moescope.statistics.samples.base import Sample
from moescope.statistics.saturation import RoutingPair
from tests.contracts.statistics_cases import CASES, DOMAINS, Case, all_cases
from tests.records import only_documents, random_batch

BATCH_SEEDS = (1, 2, 3)


@pytest.fixture(params=all_cases())
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def batches() -> list[TokenBatch]:
    return [random_batch(seed, num_domains=len(DOMAINS), num_documents=14) for seed in BATCH_SEEDS]


def fed(case: Case, records: list) -> Statistic:
    statistic = case.make()
    for record in records:
        statistic.update(record)
    return statistic


def records_by_batch(case: Case) -> list[list]:
    return [case.records(tokens, seed) for seed, tokens in zip(BATCH_SEEDS, batches(), strict=True)]


def assert_same_state(left: Statistic, right: Statistic, tolerance: float) -> None:
    ours, theirs = left.totals(), right.totals()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.dtype.is_floating_point:
            np.testing.assert_allclose(
                theirs[name].numpy(), tensor.numpy(), rtol=tolerance, atol=1e-12, equal_nan=True, err_msg=name
            )
        else:
            assert torch.equal(theirs[name], tensor), name


def assert_same_table(left: xr.Dataset, right: xr.Dataset, tolerance: float) -> None:
    assert list(left.variables) == list(right.variables)
    for name in left.variables:
        ours, theirs = left[name].values, right[name].values
        assert ours.shape == theirs.shape, name
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(theirs, ours, rtol=tolerance, atol=1e-9, equal_nan=True, err_msg=str(name))
        else:
            assert np.array_equal(ours, theirs), name


def test_every_statistic_is_under_contract() -> None:
    """Those that moescope defines, less what only others are made of."""

    def kinds(parent: type[Statistic]) -> set[type[Statistic]]:
        return {kind for child in parent.__subclasses__() for kind in {child, *kinds(child)}}

    for module in pkgutil.walk_packages(moescope.__path__, "moescope."):
        if ".statistics." in module.name or ".analyses." in module.name:
            importlib.import_module(module.name)
    defined = {kind for kind in kinds(Statistic) if kind.__module__.startswith("moescope.")}
    bases = {parent for kind in defined for parent in kind.__mro__[1:]}
    assert defined - bases == {type(CASES[name].make()) for name in CASES} - bases
    assert len(defined - bases) > 10


def test_split_anywhere_in_any_order_and_into_empty_parts(case: Case) -> None:
    generator = np.random.default_rng(5)
    whole_records = records_by_batch(case)
    whole = fed(case, [record for records in whole_records for record in records])
    table = whole.compute()
    for num_parts in (1, 2, 5):
        parts = [case.make() for _ in range(num_parts + 1)]  # the last one stays empty
        pieces: list[tuple[int, list]] = []
        for records in whole_records:
            if case.splits:
                assigned_B = generator.integers(0, num_parts, tokens_of(records[0]).num_documents)
                for part in range(num_parts):
                    pieces.append((part, only_documents(records, np.flatnonzero(assigned_B == part).tolist())))
            else:
                pieces.append((int(generator.integers(num_parts)), records))
        for index in generator.permutation(len(pieces)):
            part, records = pieces[index]
            for position in generator.permutation(len(records)):  # layers in any order too
                parts[part].update(records[position])
        merged = case.make()
        for index in generator.permutation(len(parts)):
            before = {name: tensor.clone() for name, tensor in parts[index].state.items()}
            assert merged.merge(parts[index]) is merged
            for name, tensor in parts[index].state.items():
                assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), f"merge changed {name} of the other"
        assert_same_state(whole, merged, case.tolerance)
        assert_same_table(table, merged.compute(), case.tolerance)


def test_the_same_batches_give_the_same_bits_in_any_order_and_tree(case: Case) -> None:
    """Units of a run are merged as they come, from several processes: no bit may depend on that."""
    by_batch = records_by_batch(case)
    whole = fed(case, [record for records in by_batch for record in records])
    alone = [fed(case, records) for records in by_batch]
    for order in ((2, 0, 1), (1, 2, 0)):
        first, second, third = (alone[index] for index in order)
        merged = case.make().merge(third).merge(case.make().merge(second).merge(first))
        for name, tensor in whole.state.items():
            assert torch.equal(merged.state[name].nan_to_num(), tensor.nan_to_num()), name
        assert_same_table(whole.compute(), merged.compute(), 0.0)


def test_a_batch_without_tokens_changes_nothing(case: Case) -> None:
    statistic = fed(case, records_by_batch(case)[0])
    before = {name: tensor.clone() for name, tensor in statistic.state.items()}
    for record in only_documents(records_by_batch(case)[0], []):
        statistic.update(record)
    for name, tensor in statistic.state.items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_state_changes_through_combine_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = case.make()
    if isinstance(statistic, Sample):
        pytest.skip("a sample is no sum: it replaces what it holds")
    names: set[str] = set()
    monkeypatch.setattr(statistic, "_combine", lambda name, increment, at=...: names.add(name))
    for record in records_by_batch(case)[0]:
        statistic.update(record)
    assert_same_state(case.make(), statistic, 0.0)
    assert names <= set(statistic.state)
    assert names


def test_the_order_of_tokens_does_not_matter(case: Case) -> None:
    records = records_by_batch(case)[0]
    if isinstance(records[0], ExpertOutputs):
        pytest.skip("expert outputs are sorted by expert already")
    order_T = torch.from_numpy(np.random.default_rng(3).permutation(records[0].tokens.num_tokens))
    tokens = dataclasses.replace(
        records[0].tokens,
        **{
            name: getattr(records[0].tokens, name)[order_T]
            for name in ("token_ids_T", "next_token_ids_T", "positions_T", "rows_T", "predicted_token_ids_T")
        },
    )

    def shuffled(record: Routing | RoutingPair) -> Routing | RoutingPair:
        if isinstance(record, RoutingPair):
            return RoutingPair(shuffled(record.checkpoint), shuffled(record.final))
        changes = {"tokens": tokens, "previous": None if record.previous is None else shuffled(record.previous)}
        for name in ("expert_ids_TK", "weights_TK", "logits_TE", "selection_values_TE", "inputs_TM"):
            tensor = getattr(record, name)
            changes[name] = None if tensor is None else tensor[order_T]
        return dataclasses.replace(record, **changes)

    assert_same_state(fed(case, records), fed(case, [shuffled(record) for record in records]), case.tolerance)


def test_inputs_stay_as_they_were(case: Case) -> None:
    records, untouched = (case.records(batches()[0], 1) for _ in range(2))
    fed(case, records).compute()
    for ours, theirs in zip(records, untouched, strict=True):
        assert_same_fields(ours, theirs)


def assert_same_fields(left: object, right: object) -> None:
    for definition in dataclasses.fields(left):  # type: ignore[arg-type]
        ours, theirs = getattr(left, definition.name), getattr(right, definition.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), definition.name
        elif dataclasses.is_dataclass(ours):
            assert_same_fields(ours, theirs)
        else:
            assert ours == theirs, definition.name


def test_compute_leaves_the_state_and_can_be_asked_twice_and_in_between(case: Case) -> None:
    first, second, *_ = records_by_batch(case)
    statistic = fed(case, first)
    table = statistic.compute()
    before = {name: tensor.clone() for name, tensor in statistic.state.items()}
    assert_same_table(table, statistic.compute(), 0.0)
    for name, tensor in statistic.state.items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
    for record in second:
        statistic.update(record)
    assert_same_table(fed(case, [*first, *second]).compute(), statistic.compute(), case.tolerance)


def test_save_and_load(case: Case, tmp_path: Path) -> None:
    first, second, *_ = records_by_batch(case)
    statistic = fed(case, first)
    statistic.save(tmp_path / "state.safetensors")
    loaded = type(statistic).load(tmp_path / "state.safetensors")
    assert loaded.parameters == statistic.parameters
    assert_same_state(statistic, loaded, 0.0)
    assert {name: tensor.dtype for name, tensor in loaded.state.items()} == {
        name: tensor.dtype for name, tensor in statistic.state.items()
    }
    assert_same_table(statistic.compute(), loaded.compute(), 0.0)
    for record in second:  # what was loaded can be continued, and merges
        loaded.update(record)
    assert_same_state(fed(case, [*first, *second]), loaded, case.tolerance)
    statistic.merge(fed(case, second))
    assert_same_state(statistic, loaded, case.tolerance)


def test_another_statistic_is_not_loaded(case: Case, tmp_path: Path) -> None:
    statistic = case.make()
    statistic.save(tmp_path / "state.safetensors")

    class Another(type(statistic)):  # type: ignore[misc]
        pass

    with pytest.raises(UsageError, match=type(statistic).__name__):
        Another.load(tmp_path / "state.safetensors")


def test_merge_of_different_parameters_is_refused(case: Case) -> None:
    statistic = case.make()
    assert case.other, "a case says which change of parameters makes another statistic"
    for name, value in case.other.items():
        with pytest.raises(UsageError, match="cannot merge"):
            statistic.merge(case.make(**{name: value}))
    with pytest.raises(UsageError, match="cannot merge"):
        statistic.merge(case.make(layers=statistic.layers[:2]))


def test_empty_makes_another_with_the_same_parameters(case: Case) -> None:
    statistic = fed(case, records_by_batch(case)[0])
    empty = statistic.empty()
    assert empty.parameters == statistic.parameters
    assert_same_state(case.make(), empty, 0.0)
    assert_same_state(statistic, empty.merge(statistic), 0.0)


def test_state_is_bounded(case: Case) -> None:
    statistic = case.make()
    allocated = {name: (tensor.shape, tensor.dtype) for name, tensor in statistic.state.items()}
    num_bytes = statistic.nbytes()
    assert num_bytes == sum(tensor.nbytes for tensor in statistic.state.values())
    for seed in range(4):
        for record in case.records(random_batch(seed, num_documents=40, num_domains=len(DOMAINS)), seed):
            statistic.update(record)
    assert statistic.nbytes() == num_bytes
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in statistic.state.items()} == allocated


def test_a_layer_it_was_not_made_for_is_an_error(case: Case) -> None:
    statistic = case.make(layers=case.make().layers[:1])
    *_, last = case.records(batches()[0], 1)
    with pytest.raises((UsageError, KeyError)):
        statistic.update(last)


def test_everything_is_labeled_with_unit_and_definition(case: Case) -> None:
    table = fed(case, records_by_batch(case)[0]).compute()
    assert len(table.data_vars)
    for name, variable in table.data_vars.items():
        assert {"units", "definition"} <= set(variable.attrs), name
        assert all(dimension in table.coords for dimension in variable.dims), (name, variable.dims)


def test_nothing_counted_can_be_computed(case: Case) -> None:
    assert len(case.make().compute().data_vars)


def tokens_of(record: Routing | ExpertOutputs) -> TokenBatch:
    return record.routing.tokens if isinstance(record, ExpertOutputs) else record.tokens
