"""State on disk: smaller, and exactly what it was; a disk that is full is said as what it is."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moescope.errors import ResultsError, UsageError
from moescope.statistics.base import Statistic
from moescope.statistics.storage import METADATA, checksum, pack, unpack, write
from moescope.statistics.tokens import TokenUsage
from moescope.statistics.usage import ExpertUsage
from tests.records import random_batch, random_routings

LAYERS = [2, 3]
FEW = torch.zeros(7, 91, dtype=torch.int32)
FEW[0, 5], FEW[6, 0], FEW[6, 90] = 9, 300, -1
TENSORS = {
    "zeros": torch.zeros(3, 50, dtype=torch.int64),
    "ones": torch.ones(40, dtype=torch.int64),
    "few": FEW,
    "byte": torch.arange(256),
    "word": torch.arange(-300, 300),
    "widest": torch.tensor([2**62, -(2**62), 0]),
    "reals": torch.tensor([0.0, 0.1, float("nan"), float("inf")], dtype=torch.float64),
    "none": torch.zeros(0, 4, dtype=torch.int64),
    "scalar": torch.tensor(7),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_was_packed_comes_back(name: str, tmp_path: Path) -> None:
    tensor = TENSORS[name]
    write(pack(name, tensor), tmp_path / "file", {})
    stored = load_file(tmp_path / "file")
    back = unpack(name, torch.zeros_like(tensor), set(stored), stored.__getitem__)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back.nan_to_num(), tensor.nan_to_num())


def test_what_takes_how_much() -> None:
    sizes = {name: sum(part.nbytes for part in pack(name, tensor).values()) for name, tensor in TENSORS.items()}
    assert (sizes["byte"], sizes["word"], sizes["widest"]) == (256, 2 * 600, 3 * 8)
    assert sizes["few"] == -(-7 * 91 // 8) + 3 * 2
    assert sizes["zeros"] == -(-150 // 8)


def test_counts_take_a_fraction_of_their_size_in_memory(tmp_path: Path) -> None:
    tokens = random_batch(1, num_documents=40, num_domains=3)
    usage = ExpertUsage(layers=LAYERS, num_experts=16, num_experts_per_token=2, domains=list("abc"))
    types = TokenUsage(layers=LAYERS, num_experts=16, num_experts_per_token=2, vocab_size=5000)
    for record in random_routings(tokens, 1, layers=LAYERS, num_experts=16, num_experts_per_token=2):
        usage.update(record)
        types.update(record)
    for statistic, share in ((usage, 0.5), (types, 0.05)):
        statistic.save(tmp_path / "state")
        assert (tmp_path / "state").stat().st_size < share * statistic.nbytes()
        loaded = type(statistic).load(tmp_path / "state")
        assert all(torch.equal(loaded.state[name], tensor) for name, tensor in statistic.state.items())
        assert {name: tensor.dtype for name, tensor in loaded.state.items()} == {
            name: tensor.dtype for name, tensor in statistic.state.items()
        }


def test_what_the_disk_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    statistic = TokenUsage(layers=LAYERS, num_experts=16, num_experts_per_token=2, vocab_size=50)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/state") as error:
        statistic.save(tmp_path / "file" / "state")
    assert error.value.errno == errno.ENOTDIR


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    statistic = TokenUsage(layers=LAYERS, num_experts=16, num_experts_per_token=2, vocab_size=50)
    contents = set()
    for index in range(8):
        statistic.save(tmp_path / str(index))
        contents.add((tmp_path / str(index)).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("metadata", [None, {"statistic": "TokenUsage", "format": "pt"}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"counts": torch.ones(3)}, tmp_path / "file", metadata=metadata)
    with pytest.raises(ResultsError, match="holds the state of nothing known"):
        TokenUsage.load(tmp_path / "file")


@pytest.fixture
def counted() -> ExpertUsage:
    return usage_of(1)


def usage_of(seed: int) -> ExpertUsage:
    tokens = random_batch(seed, num_documents=20, num_domains=3)
    usage = ExpertUsage(layers=LAYERS, num_experts=16, num_experts_per_token=2, domains=list("abc"))
    for record in random_routings(tokens, seed, layers=LAYERS, num_experts=16, num_experts_per_token=2):
        usage.update(record)
    return usage


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], *, sign: bool) -> Path:
    """The file with its facts or tensors changed; `sign`: with a checksum that fits, as a forger would."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(facts, tensors)
    if sign:
        facts.pop("checksum")
        facts["checksum"] = checksum(tensors, facts)
    save_file(tensors, path, metadata={METADATA: json.dumps(facts)})
    return path


def larger(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    facts["parameters"]["num_experts"] = 10**9
    facts["tensors"] = {name: [dtype, *(10**9 if size == 16 else size for size in shape)]
                        for name, (dtype, *shape) in facts["tensors"].items()}  # fmt: skip


def longer(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.cat([tensors[name].flatten(), tensors[name].flatten()])


@pytest.mark.parametrize(
    ("change", "sign", "said"),
    [
        (lambda facts, tensors: facts.update(version=99), True, r"version 99[\s\S]*update moescope"),
        (lambda facts, tensors: facts.update(version=1), True, r"version 1 [\s\S]*run the command again"),
        (lambda facts, tensors: facts.pop("version"), True, r"version 1 [\s\S]*run the command again"),
        (lambda facts, tensors: facts["parameters"].update(seed=5), False, "its checksum is another"),
        (lambda facts, tensors: tensors[sorted(tensors)[0]].add_(1), False, "its checksum is another"),
        (lambda facts, tensors: tensors.pop(sorted(tensors)[0]), True, "cannot be read"),
        (lambda facts, tensors: tensors.update(more=torch.ones(1)), True, "cannot be read: it holds more"),
        (longer, True, "cannot be read"),
        (larger, True, "cannot be read"),
        (lambda facts, tensors: facts.update(parameters=5), True, "cannot be read"),
        (lambda facts, tensors: facts["parameters"].pop("domains"), True, "cannot be read"),
        (lambda facts, tensors: facts.update(provenance={"model": 5, "samples": [3]}), True, "cannot be read"),
    ],
)
def test_damaged_and_forged_files_are_refused(
    counted: ExpertUsage, change: Callable[..., None], sign: bool, said: str, tmp_path: Path
) -> None:
    counted.save(tmp_path / "state")
    with pytest.raises(UsageError, match=said):
        ExpertUsage.load(rewritten(tmp_path / "state", change, sign=sign))


def test_files_that_were_cut_short_and_no_files_are_refused(counted: ExpertUsage, tmp_path: Path) -> None:
    counted.save(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    for content in (b"", whole[:5], whole[:300], whole[:-1], b"\xff" * 8 + whole[8:], b"PAR1" * 40):
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(ResultsError, match="cut cannot be read"):
            ExpertUsage.load(tmp_path / "cut")
    with pytest.raises(ResultsError, match="there is no such file"):
        ExpertUsage.load(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="it is no file"):
        ExpertUsage.load(tmp_path)


def test_nothing_is_counted_twice(counted: ExpertUsage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with itself"):
        counted.merge(counted)
    counted.save(tmp_path / "state")
    first, second = ExpertUsage.load(tmp_path / "state"), ExpertUsage.load(tmp_path / "state")
    before = {name: tensor.clone() for name, tensor in first.state.items()}
    for other in (second, counted):
        with pytest.raises(UsageError, match="it would count twice"):
            first.merge(other)
    assert all(torch.equal(first.state[name], tensor) for name, tensor in before.items())
    usage_of(2).save(tmp_path / "other")
    first.merge(ExpertUsage.load(tmp_path / "other")).save(tmp_path / "both")
    for part in ("state", "other"):  # also what is part of a merged state
        with pytest.raises(UsageError, match="it would count twice"):
            ExpertUsage.load(tmp_path / "both").merge(ExpertUsage.load(tmp_path / part))
    nothing = counted.empty()
    nothing.save(tmp_path / "empty")
    ExpertUsage.load(tmp_path / "empty").merge(ExpertUsage.load(tmp_path / "empty"))


class Narrow(Statistic[Any]):
    """A sum in 32 bits."""

    def __init__(self, *, layers: list[int], device: torch.device | str = "cpu") -> None:
        super().__init__(layers=layers, device=device)
        self._declare("counts_L", (len(self.layers),), torch.int32)

    def update(self, record: Any) -> None:
        self._combine("counts_L", torch.tensor(record))

    def compute(self) -> Any:
        return None


def test_sums_that_would_overflow_are_widened(tmp_path: Path) -> None:
    parts = [Narrow(layers=[0, 1]) for _ in range(3)]
    for number, part in enumerate(parts):
        part.update([2**31 - 1 - number, number])
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.state["counts_L"].tolist() == [3 * (2**31 - 1) - 3, 3]
    merged.save(tmp_path / "state")
    loaded = Narrow.load(tmp_path / "state")
    assert torch.equal(loaded.state["counts_L"], merged.state["counts_L"])
    assert loaded.state["counts_L"].dtype == torch.int64
