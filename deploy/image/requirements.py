"""Splits what the packages need into what has torch and what has not, each with its pins.

`python requirements.py FOLDER` reads `FOLDER/constraints.txt` and `FOLDER/*/pyproject.toml` and writes `FOLDER/out/`:
`light.txt` (requirements without torch and what needs it), `constraints.txt` (all pins), `torch.txt` (the pins torch's
layer depends on).
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TORCH = re.compile(
    r"(torch|torchvision|triton|nvidia-.*|cuda-.*|numpy|pillow|sympy|mpmath|networkx|fsspec|filelock|jinja2|markupsafe"
    r"|typing[-_]extensions|setuptools|opacus|opt[-_]einsum|scipy|dp[-_]accounting|absl-py|attrs|dm-tree|wrapt)$",
    re.IGNORECASE,
)
OUTSIDE = re.compile(r"(torch|torchvision|opacus|dp-accounting|concilia-.*)$")


def name_of(requirement: str) -> str:
    """A requirement's distribution, without extras and versions."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def main(folder: Path) -> None:
    """Write the three files."""
    pins = (folder / "constraints.txt").read_text().split()
    needed: set[str] = set()
    for project in folder.glob("*/pyproject.toml"):
        needed.update(tomllib.loads(project.read_text())["project"]["dependencies"])
    out = folder / "out"
    out.mkdir()
    (out / "constraints.txt").write_text("\n".join(pins) + "\n")
    (out / "light.txt").write_text(
        "\n".join(sorted(item for item in needed if not OUTSIDE.match(name_of(item)))) + "\n"
    )
    (out / "torch.txt").write_text("\n".join(pin for pin in pins if TORCH.match(name_of(pin))) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
