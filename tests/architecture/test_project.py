"""The files about the project agree with each other, and what others' code runs in it is frozen."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FROZEN = re.compile(r"[0-9a-f]{40}  # (frozen: )?v\d+(\.\d+)+")


def test_hooks_and_actions_are_frozen():
    """Tags can be moved to other code; commits cannot."""
    hooks = re.findall(r"rev: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    actions = [use for path in WORKFLOWS for use in re.findall(r"uses: \S+?@(.*)", path.read_text())]
    assert len(hooks) >= 2
    assert len(actions) >= 2 * len(WORKFLOWS)
    assert [revision for revision in hooks + actions if not FROZEN.fullmatch(revision)] == []


def test_the_spelling_hook_is_the_pinned_codespell():
    """Another version has other words: what the hook passes, .ci/run would refuse."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    tag = re.search(r"codespell\n\s+rev: \w+  # frozen: v([\d.]+)", hooks)
    assert tag
    assert f"codespell=={tag[1]}" in PYPROJECT["tool"]["uv"]["constraint-dependencies"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_a_change_must_pass_on_every_python(path: Path):
    (job,) = yaml.safe_load(path.read_text())["jobs"].values()
    assert [step["run"].split()[0] for step in job["steps"] if "run" in step] == [".ci/run"]
    prefix = "Programming Language :: Python :: "
    versions = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert job["strategy"]["matrix"]["python-version"] == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]


def test_our_warnings_are_given_in_one_way():
    """`errors.warn` notes them for the run of the thread that warns; `warnings.warn` alone would be shown and lost."""
    source = ROOT / "src" / "moescope"
    given = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"warnings\.warn\(", path.read_text(encoding="utf-8"))
    }
    assert given == {"errors.py"}
