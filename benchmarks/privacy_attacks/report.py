"""All attacks with and without protection, in tables and sheets: `make bench-attacks`.

`python -m benchmarks.privacy_attacks.report --data FOLDER --weights FILE` attacks drawn lesions and the folder's;
README.md says what the columns mean. Sheets of all go to `--work`; of drawn lesions alone one goes beside the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concilia_client_node import dataset, drawn
from concilia_client_node.dataset import Folder
from concilia_client_node.pictures import Pictures
from concilia_kit import logs
from concilia_kit.lesions import CLASSES
from torch import Tensor

from benchmarks import kept_runs, results
from benchmarks.features import PADDED
from benchmarks.privacy_attacks import heads, likeness, rebuilding, refusing
from benchmarks.privacy_attacks.inversion import Search
from benchmarks.privacy_attacks.likeness import Likeness
from benchmarks.privacy_attacks.membership import part
from benchmarks.privacy_attacks.rebuilding import BATCH, HOSPITALS, SIDE, Mode

PICTURES = ("inversion", "tampering")
PARTS = (*PICTURES, "membership", "prevalence")
DRAWN_IMAGES = 2000
_OTHERS = 40
_SHOWN = 2
"""Trials whose pictures are on a sheet."""
Rows = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, then print and write the tables; 0."""
    options = _options(arguments)
    logs.configure("bench-attacks", "text", "ERROR")
    torch.set_num_threads(1)
    drawings = options.work / "drawn"
    if not drawings.exists():
        drawn.write_drawn(drawings, DRAWN_IMAGES, 0)
    folders = [dataset.read(each) for each in (drawings, options.data) if each is not None]
    found: dict[str, Rows] = {name: [] for name in options.parts}
    for name in options.parts:
        for folder in folders if name in PICTURES else folders[-1:]:
            found[name] += _kept(name, folder, options)
    table = "\n\n".join(f"## {name}\n\n{_table(rows)}" for name, rows in found.items())
    print("\n" + table)
    document = {"arguments": _said(options), "data": [each.source for each in folders], "rows": found}
    path = results.write("privacy-attacks", document, table, options.output)
    for name in PICTURES:
        sheet = _sheet(name, folders[0], options)
        if sheet.exists():
            shutil.copy(sheet, path.with_name(f"{path.stem}-{name}.png"))
    print(f"\nwritten to {path}; sheets in {options.work}")
    return 0


def _kept(name: str, folder: Folder, options: argparse.Namespace) -> Rows:
    """A part's rows, made once: what was interrupted goes on."""
    told = kept_runs.digest_of(_said(options) | {"parts": name, "source": folder.source})
    path = options.work / f"{name}-{told}.json"
    if not path.exists():
        print(f"{name}, {folder.source}", file=sys.stderr, flush=True)
        rows = {"inversion": _inversion, "tampering": _tampering, "membership": _membership, "prevalence": _prevalence}[
            name
        ](folder, options)
        with kept_runs.whole(path) as file:
            file.write(json.dumps(rows).encode())
    rows = json.loads(path.read_text())
    assert isinstance(rows, list), "as it was written"
    return rows


def _sheet(name: str, folder: Folder, options: argparse.Namespace) -> Path:
    work: Path = options.work
    return work / f"{name}-{folder.source.replace(' ', '-')}.png"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.privacy_attacks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout, beside the drawn lesions")
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2's trunk (default: random)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--trials", type=int, default=3, help="batches that are rebuilt")
    parser.add_argument("--steps", type=int, default=Search().steps, help="of the search for pictures")
    parser.add_argument("--models", type=int, default=64, help="that are attacked for membership, each by all others")
    parser.add_argument("--lesions", type=int, default=400, help="each model is trained on a half of them")
    parser.add_argument("--epochs", type=int, default=100, help="of the overfitted control")
    parser.add_argument("--few", type=int, default=5, help="epochs of the control that is not overfitted")
    parser.add_argument("--size", type=int, default=224, help="side of the trunk's input, pixels")
    parser.add_argument("--cache", type=Path, default=Path("var/federated/features"))
    parser.add_argument(
        "--work", type=Path, default=Path("var/privacy"), help="where drawn lesions and sheets are kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    return parser.parse_args(arguments)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    said = {name: value for name, value in vars(options).items() if name not in ("cache", "work", "output", "data")}
    return said | {"weights": options.weights and options.weights.name}


def _inversion(folder: Folder, options: argparse.Namespace) -> Rows:
    of: dict[Mode, list[Likeness]] = {mode: [] for mode in Mode}
    shown: dict[str, list[Tensor]] = {name: [] for name in ("real", *Mode)}
    for trial in range(options.trials):
        wanted = HOSPITALS * BATCH
        every = rebuilding.lesions(folder, wanted + _OTHERS, SIDE, trial)
        some, others = part(every, np.arange(wanted)), part(every, np.arange(wanted, wanted + _OTHERS))
        found = rebuilding.attack(some, others, tuple(Mode), Search(steps=options.steps, seed=trial))
        shown["real"].append(rebuilding.real(some)[:BATCH])
        for mode, rebuilt in found.items():
            of[mode] += rebuilt.likeness
            shown[mode].append(rebuilt.pictures)
    rows = [
        {"pictures": folder.source, "what the attacker has": mode.value}
        | {"batch of": BATCH}
        | likeness.summed(of[mode])
        for mode in Mode
    ]
    sheet = [(name, torch.cat(parts[:_SHOWN])) for name, parts in shown.items()]
    likeness.sheet(sheet, _sheet("inversion", folder, options))
    return rows


def _tampering(folder: Folder, options: argparse.Namespace) -> Rows:
    rows, sheet = refusing.run(folder, options.trials)
    likeness.sheet(sheet, _sheet("tampering", folder, options))
    return rows


def _featured(folder: Folder, options: argparse.Namespace) -> tuple[str, Pictures]:
    trunk = f"{folder.source}, {'ImageNet' if options.weights else 'random'} trunk"
    return trunk, heads.featured(folder, options.weights, options.size, options.cache)


def _membership(folder: Folder, options: argparse.Namespace) -> Rows:
    trunk, pictures = _featured(folder, options)
    some, build = heads.some_lesions(pictures, options.lesions, 0), heads.linear(PADDED, len(CLASSES))
    found = heads.memberships(some, build, options.models, options.epochs, options.few, 0, (heads.EPSILON,))
    return [
        {"pictures": trunk, "training": each.name, "noise": each.noise and round(each.noise, 3)}
        | {name: round(value, 4) for name, value in asdict(each.caught).items()}
        for each in found
    ]


def _prevalence(folder: Folder, options: argparse.Namespace) -> Rows:
    trunk, pictures = _featured(folder, options)
    build = heads.linear(PADDED, len(CLASSES))
    own = set(sorted(set(pictures.lesions))[::2])
    mine, theirs = (
        part(pictures, np.flatnonzero([(each in own) is side for each in pictures.lesions])) for side in (True, False)
    )
    errors = asdict(heads.shares(mine, theirs, build, shadows=300, victims=80, images=200, cohort=8, seed=0))
    return [
        {"pictures": trunk, "what the attacker has": words, "error of a class's share": round(errors[name], 4)}
        for name, words in _TOLD.items()
    ]


_TOLD = {
    "guess": "no update: mean share of its own hospitals",
    "plain": "unprotected update",
    "words": "secure aggregation, masked words",
    "total": "secure aggregation, the sum of eight",
    "private": "differential privacy, ε = 8",
}


def _table(rows: Rows) -> str:
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("" if row[name] is None else str(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
