"""State on disk: smaller, and exactly what it was; a disk that is full is said as what it is."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moescope.errors import UsageError
from moescope.statistics.storage import pack, unpack, write
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


@pytest.mark.parametrize("metadata", [{}, {"statistic": "TokenUsage", "format": "pt"}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    write({"counts": torch.ones(3)}, tmp_path / "file", metadata)
    with pytest.raises(UsageError, match="holds the state of nothing known"):
        TokenUsage.load(tmp_path / "file")
