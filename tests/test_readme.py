"""Every block of the README runs: commands on a small sample, Python as it stands."""

import re
import shlex
from pathlib import Path

import pytest

import moescope
from moescope.analyses import registry
from moescope.cli import thesis
from moescope.cli.app import build
from moescope.cli.failures import launch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines()).strip("\n")
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", README, flags=re.MULTILINE)
    if block.strip()
]
LINES = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("uv run ") and "pytest" not in line]
PYTHON = [block for block in BLOCKS if block.startswith("import")]
SMALL = ["--num-tokens", "1200"]
WITHOUT_TEXT = ("info", "weights", "intervene")
SLOW = (
    "report",
    "atlas",
    "saturation",
    "profile",
    "map",
    "similarity",
    "usage",
    "sim.py",
    "router_metrics.py",
    "interv.py",
)
"""Commands of minutes; they run in the scheduled set."""


def test_all_blocks_are_known():
    """What is no command for moescope and no Python sets things up, and CI does that."""
    setup = ("git clone", "uv run", "pip install", "moescope", "pytest")
    rest = [line for block in BLOCKS if block not in PYTHON for line in block.splitlines() if line.strip()]
    assert [line for line in rest if not line.startswith(setup)] == []
    assert len(COMMANDS) > 15 and len(PYTHON) == 2


def cases():
    for line in COMMANDS:
        name = shlex.split(line)[3] if line.startswith("uv run moescope") else shlex.split(line)[2]
        yield pytest.param(line, id=line.removeprefix("uv run "), marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("line", cases())
def test_commands(line, tmp_path, monkeypatch, nano_folder):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[2:]
    places = {"MODEL": "nano", "EARLIER": nano_folder, "LATER": nano_folder}
    words = [str(places.get(word, word)) for word in words]
    if "--trace" in words:
        assert launch(build(), ["trace", "--out", words[words.index("--trace") + 1], *SMALL]) == 0
    if words[0] == "moescope":
        if words[1] == "saturation":
            words += ["--label", "earlier", "later"]
        assert launch(build(), words[1:] + (SMALL if words[1] not in WITHOUT_TEXT else [])) == 0
    else:
        script = words[0].removesuffix(".py")
        given = [*words[1:], *(SMALL if "--num_tokens" not in words and script != "interv" else [])]
        given = re.sub(r"--num_tokens \d+", "--num_tokens 1200", shlex.join(given))
        monkeypatch.setattr("sys.argv", [words[0], *shlex.split(given)])
        assert getattr(thesis, script)() == 0
    made = tmp_path / (words[words.index("--out") + 1] if "--out" in words else "results")
    assert "info" in words or any(made.iterdir())


@pytest.mark.parametrize("block", PYTHON)
def test_python(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block.replace("num_tokens=20_000", "num_tokens=2_000"), "README.md", "exec"), names)
    assert {"run", "usage"} & set(names)


def test_every_question_is_named():
    assert [name for name in registry.names() if f"`{name}`" not in README and f"moescope {name}" not in README] == []


@pytest.fixture(scope="module")
def nano_folder():
    """The embedded model's own folder: a checkpoint like any other."""
    return Path(moescope.__file__).parent / "models" / "nano"
