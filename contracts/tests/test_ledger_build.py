"""The checked-in build is what the sources give, and README.md tells the contract's errors rightly."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from contracts.tests.ledger_harness import ROOT, artifact, errors_by_selector, signature_of

BUILDS = ("ConciliaLedger", "UniversalSignatureValidator", "TestTypedWallet", "TestWallet", "TestWalletFactory")
EIP_170_LIMIT = 24_576
STUB = "// SPDX-License-Identifier: Apache-2.0\npragma solidity 0.8.37;\n\ncontract ConciliaLedger {}\n"


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The pinned compiler and libraries, installed where they are missing; without them this module fails."""
    installed = ROOT / "node_modules"
    # npm writes this file last: a directory without it is an installation that was cut short.
    if not (installed / ".package-lock.json").exists():
        _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=ROOT)
    return installed


@pytest.fixture(scope="module")
def small_build(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build of a ledger so small that it compiles at once."""
    directory = tmp_path_factory.mktemp("small")
    shutil.copytree(ROOT / "src", directory / "src")
    (directory / "src" / "ConciliaLedger.sol").write_text(STUB)
    (directory / "build").mkdir()
    for name in ("compile.mjs", "package.json"):
        shutil.copy(ROOT / name, directory / name)
    (directory / "node_modules").symlink_to(node_modules, target_is_directory=True)
    assert _run("node", "compile.mjs", cwd=directory) == ""
    return directory


@pytest.fixture
def copy(small_build: Path, tmp_path: Path) -> Path:
    """The small build, to be spoiled."""
    return Path(shutil.copytree(small_build, tmp_path / "copy", symlinks=True))


def _run(*command: str, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _check(directory: Path, status: int) -> str:
    return _run("node", "compile.mjs", "--check", cwd=directory, status=status)


@pytest.mark.usefixtures("node_modules")
def test_the_build_is_what_the_sources_give() -> None:
    assert _check(ROOT, status=0) == ""


def test_a_build_that_differs_is_named(copy: Path) -> None:
    ledger = copy / "build" / "ConciliaLedger.json"
    built = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(built | {"deployedBytecode": "0x00"}, indent=2, sort_keys=True) + "\n")
    (copy / "build" / "TestWallet.json").unlink()
    report = _check(copy, status=1)
    assert "build/ConciliaLedger.json differs from its source in: deployedBytecode;" in report
    assert "build/TestWallet.json differs from its source in: missing;" in report


def test_a_warning_fails_the_build(copy: Path) -> None:
    source = copy / "src" / "test" / "TestWallet.sol"
    text = source.read_text()
    source.write_text(text.removesuffix("}\n") + "\n    function f() external pure { uint256 unused; }\n}\n")
    assert "Unused local variable" in _check(copy, status=1)


def test_an_unknown_option_writes_nothing(copy: Path) -> None:
    before = (copy / "build" / "ConciliaLedger.json").stat().st_mtime_ns
    assert _run("node", "compile.mjs", "--chekc", cwd=copy, status=2) == "usage: node compile.mjs [--check]\n"
    assert (copy / "build" / "ConciliaLedger.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("node_modules")
def test_solhint_has_nothing_to_say() -> None:
    _run("npm", "run", "--silent", "lint", cwd=ROOT)


@pytest.mark.parametrize("name", BUILDS)
def test_a_build_is_sorted_and_fits_on_a_chain(name: str) -> None:
    text = (ROOT / "build" / f"{name}.json").read_text()
    built = json.loads(text)
    assert text == json.dumps(built, indent=2, sort_keys=True) + "\n"
    assert set(built) == {"abi", "bytecode", "compiler", "contractName", "deployedBytecode", "settings"}
    assert built["contractName"] == name
    assert built["settings"]["evmVersion"] == "shanghai"
    assert len(bytes.fromhex(built["deployedBytecode"].removeprefix("0x"))) <= EIP_170_LIMIT


def test_what_is_installed_is_pinned_and_names_no_registry() -> None:
    package = json.loads((ROOT / "package.json").read_text())
    lock = json.loads((ROOT / "package-lock.json").read_text())
    for name, version in package["devDependencies"].items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    dependencies = {path: entry for path, entry in lock["packages"].items() if path}
    assert all("resolved" not in entry and "integrity" in entry for entry in dependencies.values())


def test_the_readme_lists_every_error_with_its_selector() -> None:
    rows = re.findall(r"^\| `(0x[0-9a-f]{8})` \| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    errors = errors_by_selector(artifact("ConciliaLedger")["abi"])
    assert dict(rows) == {selector: signature_of(entry) for selector, entry in errors.items()}
    assert len(rows) == len(errors)


def test_the_readme_tells_the_gas_of_the_snapshot() -> None:
    readme = (ROOT / "README.md").read_text()
    figures = json.loads((ROOT / "gas-snapshot.json").read_text())["submitUpdates"]
    for size, gas in figures.items():
        assert f"| {size} | {gas:,} | {round(gas / int(size)):,} |" in readme
