"""Help is complete, plain and cheap; what can't be parsed is said helpfully."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from moescope.analyses import registry

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "pandas", "xarray", "matplotlib", "umap", "scipy", "datasets", "jinja2")

HELP = f"""
import contextlib, io, json, sys
from moescope.cli import main
from moescope.cli.thesis import router_decisive, router_metrics, router_stats
pages = {{}}
for entry, words in [
    (main, ["moescope", "--help"]),
    *((main, ["moescope", name, "--help"]) for name in ["info", "report", *{registry.names()}]),
    (router_decisive, ["router_decisive.py", "--help"]),
    (router_stats, ["router_stats.py", "--help"]),
    (router_metrics, ["router_metrics.py", "--help"]),
]:
    sys.argv = words
    with contextlib.redirect_stdout(io.StringIO()) as page:
        code = entry()
    pages[" ".join(words[:-1])] = [code, page.getvalue()]
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([pages, heavy]))
"""


@pytest.fixture(scope="module")
def helped():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(helped):
    assert helped[1] == []


def test_every_command_has_its_page(helped):
    pages = helped[0]
    assert all(code == 0 for code, _ in pages.values())
    overview = pages["moescope"][1]
    for name in ["info", "report", *registry.names()]:
        assert name in overview
    of_all = ("--model", "--layers", "-l", "--seed", "--out", "--force", "--dtype")
    for name in ["report", *registry.names()]:
        page = pages[f"moescope {name}"][1]
        reads_text = name != "weights"
        for option in (*of_all, *(("--num-tokens", "--corpus") if reads_text else ())):
            assert option in page, f"{name}: {option}"
        assert ("100000" in page) == reads_text
    assert "--num-experts" in pages["router_metrics.py"][1]
    assert "--topk" in pages["router_metrics.py"][1]


def test_console_scripts_lead_somewhere():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {"moescope", "router_decisive.py", "router_stats.py", "router_metrics.py"} <= set(scripts)
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["entrop"], 'Did you mean "entropy"?'),
        (["entropy", "--layerz", "1"], "--layer"),
        (["entropy", "--num-tokens", "0"], "Must be >= 1"),
        (["entropy", "--num_tokens", "many"], 'unable to convert "many" into int'),
        (["entropy", "--layers"], "--layers"),
        (["entropy", "--dtype", "int8"], "bfloat16"),
        (["entropy", "7"], "7"),
    ],
)
def test_what_cannot_be_parsed(moescope, here, words, said):
    outcome = moescope(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert said in outcome.err
    assert "--help" in outcome.err
    assert outcome.out == ""
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("words", "most"), [(["--help"], 0.5), (["usage", "--help"], 1.0), (["atlas", "--help"], 1.0)])
def test_help_takes_little_processor_time(words, most, tmp_path):
    """The least of five runs, in seconds of processor time, with compiled files as an installed package has them."""
    code = f"import os, sys; sys.argv = ['moescope', *{words}]; from moescope.cli import main; main()"
    code += "; print(sum(os.times()[:2]), file=sys.stderr)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    seconds = []
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        seconds.append(float(done.stderr.split()[-1]))
    assert min(seconds[1:]) < most
