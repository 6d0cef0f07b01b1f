"""Foundry's fuzz and invariant tests of foundry/, by npm's forge with the pinned solc-js; nothing is downloaded."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from contracts.tests.ledger_harness import ROOT

FORGE = ROOT / "node_modules" / ".bin" / "forge"


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, str]]:
    """Status of every test of every suite, after one run of forge."""
    if not FORGE.exists():
        _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    suites = json.loads(_run(str(FORGE), "test", "--json", "--allow-failure"))
    return {
        name.split(":")[-1]: {test: told["status"] for test, told in suite["test_results"].items()}
        for name, suite in suites.items()
    }


def _run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=580, env=os.environ | {"NO_COLOR": "1"}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def _tests_in(name: str, prefix: str) -> set[str]:
    text = Path(ROOT / "foundry" / f"{name}.t.sol").read_text()
    return {
        line.split()[1].split("(")[0] for line in text.splitlines() if line.strip().startswith(f"function {prefix}")
    }


@pytest.mark.parametrize(
    ("suite", "file", "prefix"),
    [("LedgerFuzzTest", "LedgerFuzz", "testFuzz_"), ("LedgerInvariantsTest", "LedgerInvariants", "invariant_")],
)
def test_forge_finds_nothing(results: dict[str, dict[str, str]], suite: str, file: str, prefix: str) -> None:
    assert {name.split("(")[0] for name in results[suite]} == _tests_in(file, prefix) != set()
    assert {name: status for name, status in results[suite].items() if status != "Success"} == {}
