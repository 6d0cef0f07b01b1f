"""What Prometheus reads, checked by Prometheus' own tool in its own image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"


@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"],
)
def test_promtool_agrees(command: str) -> None:
    mount = f"{FOLDER}:/observability:ro"
    image = ["--entrypoint", "promtool", "--workdir", "/observability", "--volume", mount, "prom/prometheus:latest"]
    # A machine without Docker fails here: what is shipped unchecked is not shipped checked.
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", *image, *command.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr
