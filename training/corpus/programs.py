"""Extractors of source code: rust, go, python, javascript, c, sql."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from training.corpus.document import Document, clean
from training.corpus.sources import BY_NAME, Package

MIN_CHARACTERS, MAX_CHARACTERS = 600, 100_000


def rust(unpacked: Path) -> Iterator[Document]:
    """The Rust compiler and standard library, one file a document."""
    package = BY_NAME["rust-src"]
    (root,) = (unpacked / package.folder / "usr/src").glob("rustc-*")
    paths = [*root.glob("library/**/*.rs"), *root.glob("compiler/**/*.rs")]
    return _files(package, root, paths, skip=r"/(tests?|benches|generated|stdarch|unicode_data)(/|\.rs)")


def go(unpacked: Path) -> Iterator[Document]:
    """Go's standard library and compiler, one file a document."""
    package = BY_NAME["golang-1.19-src"]
    root = unpacked / package.folder / "usr/share/go-1.19/src"
    skip = r"(/|^)(testdata|vendor)/|_test\.go$|tables\.go$|/zsys|/zerrors|/ztypes|rewrite[A-Z0-9]\w*\.go$|opGen\.go$"
    return _files(package, root, root.glob("**/*.go"), skip)


def python(unpacked: Path) -> Iterator[Document]:
    """CPython's standard library without its tests, one file a document."""
    package = BY_NAME["python3.11"]
    (root,) = (unpacked / package.folder).glob("*/Lib")
    skip = r"(^|/)(test|tests|idle_test|site-packages)/|^encodings/|^pydoc_data/|/pgen2/"
    return _files(package, root, root.glob("**/*.py"), skip)


def javascript(unpacked: Path) -> Iterator[Document]:
    """The three.js library and its example modules, one file a document."""
    package = BY_NAME["three"]
    root = unpacked / package.folder / "package"
    paths = [*root.glob("src/**/*.js"), *root.glob("examples/jsm/**/*.js")]
    return _files(package, root, paths, skip=r"/libs/|\.min\.js$|\.module\.js$|/fonts/")


def c(unpacked: Path) -> Iterator[Document]:
    """PostgreSQL's server, clients and extensions, one file a document."""
    package = BY_NAME["postgresql-15"]
    (root,) = (unpacked / package.folder).glob("postgresql-*")
    paths = [*root.glob("src/**/*.c"), *root.glob("contrib/**/*.c")]
    return _files(package, root, paths, skip=r"/snowball/libstemmer/|/test/|unicode_|/expected/")


def sql(unpacked: Path) -> Iterator[Document]:
    """PostgreSQL's regression tests, catalogue views and extension scripts, one file a document."""
    package = BY_NAME["postgresql-15"]
    (root,) = (unpacked / package.folder).glob("postgresql-*")
    return _files(package, root, root.glob("**/*.sql"), skip=r"numeric_big")


def _files(package: Package, root: Path, paths: Iterable[Path], skip: str) -> Iterator[Document]:
    for path in sorted(paths):
        name = path.relative_to(root).as_posix()
        if re.search(skip, name) or path.is_symlink():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        notice, text = split_notice(clean(text))
        text = clean(text)
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and not looks_generated(text):
            yield Document(name, text, f"{package.label}: {name}", notice=notice)


def split_notice(text: str) -> tuple[str, str]:
    """Part the copyright notice that opens a file, much the same in all files of a project, from the rest.

    Returns:
        The notice, empty if there is none, and the rest.
    """
    block = re.match(r"\s*(/\*.*?\*/|(?:(?://|#|--)[^\n]*\n)+)", text, re.DOTALL)
    if block and re.search(r"copyright|licen[sc]e|IDENTIFICATION", block.group(1), re.IGNORECASE):
        return block.group(1), text[block.end() :]
    return "", text


def looks_generated(text: str) -> bool:
    """Whether a file is a table or a tool's output more than somebody's writing."""
    if re.search(r"DO NOT EDIT|automatically generated|auto-?generated", text[:3000]):
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    digits = sum(character.isdigit() for character in text)
    long_lines = sum(len(line) > 300 for line in lines)
    return digits > 0.2 * len(text) or long_lines > 0.02 * len(lines) + 2
