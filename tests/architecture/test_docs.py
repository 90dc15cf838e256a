"""Every link, file, folder and module that the documentation names exists."""

import ast
import fnmatch
import pkgutil
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [".ci", ".github", "benchmarks", "docs", "src", "tests", "training"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Not documentation of the present state: a dated record, and texts and notices of other people.
NOT_CHECKED = {
    "docs/log.md",
    "src/moescope/corpora/embedded/ATTRIBUTION.md",
    "training/corpus/notices.md",
}
FOUND = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
DOCUMENTS = sorted(
    {str(path.relative_to(ROOT)) for path in FOUND if path.relative_to(ROOT).parts[:2] != ("training", "output")}
    - NOT_CHECKED
)

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|(?:^(?: {4}|\t)[^\n]*\n?)+|`[^`\n]+`", re.DOTALL | re.MULTILINE)
TOKEN = re.compile(r"[\w.*/-]+")
EXTENSION = re.compile(
    r"[\w*-]\.(py|md|toml|cff|json|jsonl|html|css|js|jinja|png|cpp|h|txt|pt|npz|csv|parquet|safetensors)$"
)
MODULE = re.compile(r"(?<![\w./-])(moescope|training|benchmarks|tests)((?:\.[A-Za-z_]\w*)+)")


def code_of(text: str) -> list[str]:
    """Code spans and blocks, in order."""
    return CODE.findall(text)


def is_path(token: str) -> bool:
    """A file name, a folder written with its slash, or anything below a folder of the repository."""
    first, slash, rest = token.partition("/")
    return (
        bool(EXTENSION.search(token))
        or bool(token.strip("/*") and token.endswith("/"))
        or (first in FOLDERS and bool(slash and rest))
    )


def paths_in(text: str) -> list[str]:
    tokens = [token.rstrip(".,:;") for code in code_of(text) for token in TOKEN.findall(code)]
    return sorted({token for token in tokens if is_path(token)})


@cache
def repository_paths() -> tuple[str, ...]:
    """Files and folders of the repository, without what running it leaves behind."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [ROOT / folder, *(ROOT / folder).rglob("*")]
    relative = (path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)
    return tuple(str(path) for path in relative if path.parts[:2] != ("training", "output"))


@cache
def written_names(folder: str) -> frozenset[str]:
    """Names that string literals of a folder's modules contain: files that running them writes are among these."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                names.update(node.value.split("/"))
    return frozenset(names)


def exists(token: str, document: str) -> bool:
    """Whether the repository has such a path (`NAME` and `*` stand for any name), or the code writes one."""
    if token in PROJECT["scripts"]:
        return True
    pattern = re.sub(r"\bNAME\b", "*", token.strip("/") if token.startswith("/") else token.rstrip("/"))
    if any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"*/{pattern}") for path in repository_paths()):
        return True
    written = written_names("training" if document.startswith("training/") else "src")
    return all(part in written for part in pattern.removeprefix("training/").replace("*", "").split("/"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str):
    for target in LINK.findall((ROOT / document).read_text(encoding="utf-8")):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (ROOT / document).parent / target.partition("#")[0]
        assert path.exists(), f"{document} links to {target}"
        assert path.resolve().is_relative_to(ROOT), f"{document} links to {target}, outside the repository"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str):
    missing = [path for path in paths_in((ROOT / document).read_text(encoding="utf-8")) if not exists(path, document)]
    assert not missing, f"{document} names {missing}"


def trees() -> list[tuple[str, str]]:
    """Folder and lines of each layout drawn in the documentation: a code block that begins with a folder's path."""
    return [
        (document, code)
        for document in DOCUMENTS
        for code in code_of((ROOT / document).read_text(encoding="utf-8"))
        if re.match(r"\s*[\w./-]+/\n", code)
    ]


def test_layouts_are_those_of_the_folders():
    checked = 0
    for document, block in trees():
        above: list[tuple[int, Path]] = []
        for line in block.splitlines():
            names = re.split(r" · | ", re.split(r"\s{2,}", line.strip())[0])
            if not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.\w+)", name) for name in names):
                continue  # the rest of the description above
            indent = len(line) - len(line.lstrip())
            above = [(depth, path) for depth, path in above if depth < indent]
            parent = above[-1][1] if above else ROOT
            for name in names:
                assert (parent / name).exists(), f"{document} draws {name} in {parent.relative_to(ROOT)}"
            above.append((indent, parent / names[-1]))
            checked += len(names)
    assert checked >= len(FOLDERS), "docs/design.md draws the layout of the repository"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_and_names_exist(document: str):
    for code in code_of((ROOT / document).read_text(encoding="utf-8")):
        for package, rest in MODULE.findall(code):
            module = ROOT / package / Path(*rest[1:].split("."))
            if module.is_dir() or module.with_suffix(".py").is_file():
                continue
            assert package == "moescope", f"{document} names {package}{rest}"
            pkgutil.resolve_name(package + rest)
