"""The table of `benchmarks.accuracy` from the logits that its runs kept: `python -m benchmarks.accuracy_report FILE …`.

Probabilities are those of the mean logits over flips, at a temperature that was fitted on other lesions: the held-out
lesions are divided into halves by lesion, and each half is answered at the temperature of the other one.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_aggregator.calibrating import temperature
from concilia_client_node.calibrating import second_half
from concilia_kit import class_shares
from concilia_kit.lesions import MELANOMA
from concilia_kit.wire.calibration import TEMPERATURES

from benchmarks import results, scoring
from benchmarks.scoring import Rows, Scored

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_COLUMNS = (
    ("balanced accuracy", "balanced_accuracy"),
    ("accuracy", "accuracy"),
    ("macro AUC", "macro_auc"),
    ("melanoma sensitivity", "critical_sensitivity"),
    ("melanoma AUC", "critical_auc"),
    ("calibration error", "calibration_error"),
)
POOLED, FEDERATED, BY_SHARES = "pooled", "federated", ", by own shares"
JUDGED = (POOLED, POOLED + BY_SHARES, FEDERATED, FEDERATED + BY_SHARES)
GOALS = {"pooled": 0.76, "melanoma AUC": 0.88, "calibration error": 0.05, "federated": 0.95}


@dataclass(frozen=True)
class Run:
    """One run's held-out pictures: logits (n, classes) plain and over flips, classes, numbers of lesions and of sites
    (n,); the sites' names, and how many pictures of each class each of them trains on (sites, classes)."""

    recipe: dict[str, Any]
    seconds: float
    plain: Floats
    flips: Floats
    labels: Integers
    lesions: Integers
    sites: Integers
    names: tuple[str, ...]
    counts: Integers

    @classmethod
    def read(cls, path: Path) -> Run:
        """Of a file that a run wrote."""
        with np.load(path, allow_pickle=False) as kept:
            logits = {name: kept[name].astype(np.float64) for name in ("plain", "flips")}
            numbers = {name: kept[name].astype(np.int64) for name in ("labels", "lesions", "sites", "counts")}
            names = tuple(kept["names"].tolist())
            return cls(json.loads(str(kept["recipe"])), float(kept["seconds"]), names=names, **logits, **numbers)

    def rows(
        self, of: npt.NDArray[np.bool_], *, flips: bool = True, calibrated: bool = True, own_shares: bool = False
    ) -> Rows:
        """Some of its pictures as they are answered; with `own_shares` by how often each class comes at their site, as
        jobs evaluate that ask for it."""
        logits = self.flips if flips else self.plain
        if own_shares:
            everybody = np.bincount(self.labels, minlength=self.counts.shape[1]).tolist()
            logits = logits + np.array([class_shares.shift(own, everybody) for own in self.counts.tolist()])[self.sites]
        labels, lesions = self.labels[of], self.lesions[of]
        return Rows(
            cross_fitted(logits[of], labels, lesions) if calibrated else _softmax(logits[of]),
            labels,
            [str(each) for each in lesions],
            MELANOMA,
        )


def cross_fitted(logits: Floats, labels: Integers, lesions: Integers) -> Floats:
    """Probabilities (n, classes), those of each half of the lesions at the temperature that suits the other half: found
    as jobs find it that calibrate."""
    second = np.array(second_half([str(each) for each in lesions], labels, 0))
    answered = np.empty_like(logits)
    for half in (second, ~second):
        answered[half] = _softmax(logits[half] / temperature(_losses(logits[~half], labels[~half])))
    return answered


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: Floats = powers / powers.sum(1, keepdims=True)
    return found


def _losses(logits: Floats, labels: Integers) -> Floats:
    """The sum of negative log-likelihoods at each of `TEMPERATURES`."""
    own = np.arange(len(labels)), labels
    return np.array([-np.log(_softmax(logits / each)[own] + 1e-300).sum() for each in TEMPERATURES])


def report(paths: Sequence[Path], output: Path | None) -> int:
    """Print the table, and write it where `output` is a folder; 0."""
    runs = [Run.read(path) for path in paths]
    rows = _rows(runs)
    table = _table(rows, runs)
    print(table)
    if output is not None:
        document = {"recipes": [run.recipe for run in runs], "rows": rows}
        print(f"\nall samples: {results.write('accuracy', document, table, output)}")
    return 0


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a contender and seed."""
    rows, alone = list[dict[str, Any]](), defaultdict[int, list[Run]](list)
    for run in runs:
        if run.recipe["contender"].startswith("alone"):
            alone[run.recipe["seed"]].append(run)
            continue
        name = run.recipe["contender"]
        rows += [_row(name, run, own_shares=False), _row(name + BY_SHARES, run, own_shares=True)]
    for seed, each in sorted(alone.items()):
        own = [run.rows(run.sites == _own(run)) for run in each]
        seconds = sum(run.seconds for run in each)
        rows.append({"contender": "alone, on own lesions", "seed": seed, "seconds": seconds, **_told(_joined(own))})
        everywhere = [run.rows(np.ones(len(run.labels), bool)) for run in each]
        found = [scoring.bootstrap(some) for some in everywhere]
        rows += [
            {
                "contender": f"{run.names[_own(run)]} alone, on everybody's",
                "seed": seed,
                "seconds": run.seconds,
                **_told(one),
            }
            for run, one in zip(each, found, strict=True)
        ]
    return rows


def _own(run: Run) -> int:
    return int(run.recipe["contender"].partition(":")[2])


def _row(contender: str, run: Run, *, own_shares: bool) -> dict[str, Any]:
    everybody = np.ones(len(run.labels), bool)
    plain = scoring.score(run.rows(everybody, flips=False, own_shares=own_shares))
    raw = scoring.score(run.rows(everybody, calibrated=False, own_shares=own_shares))
    sites = {
        name: scoring.score(run.rows(run.sites == at, own_shares=own_shares)).balanced_accuracy
        for at, name in enumerate(run.names)
    }
    return {
        "contender": contender,
        "seed": run.recipe["seed"],
        "seconds": run.seconds,
        **_told(scoring.bootstrap(run.rows(everybody, own_shares=own_shares))),
        "without flips": plain.balanced_accuracy,
        "calibration error before": raw.calibration_error,
        "sites": sites,
    }


def _joined(some: Sequence[Rows]) -> Scored:
    return scoring.bootstrap(
        Rows(
            np.concatenate([each.probabilities for each in some]),
            np.concatenate([each.labels for each in some]),
            [lesion for each in some for lesion in each.lesions],
            MELANOMA,
        )
    )


def _told(scored: Scored) -> dict[str, list[float]]:
    return {
        name: [float(getattr(part, field)) for part in (scored.value, scored.low, scored.high)]
        for name, field in _COLUMNS
    }


def _table(rows: Sequence[dict[str, Any]], runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(row["contender"] for row in rows))
    recipe = runs[0].recipe
    lengths = {run.recipe["contender"]: (run.recipe["rounds"], run.recipe["images"]) for run in runs}
    told = (
        f"{recipe['arch']}, {recipe['weights']}, {recipe['size']} pixels, rate {recipe['rate']} {recipe['optimizer']}, "
        f"batches of {recipe['batch']}, balance {recipe['balance']}, {recipe['strategy']}; {recipe['data']}. "
        + "; ".join(_length(name, *lengths[name]) for name in (POOLED, FEDERATED) if name in lengths)
    )
    lines = [
        f"{told}. Means over seeds {sorted({run.recipe['seed'] for run in runs})}; in brackets the ends of "
        "95 % intervals over lesions, means over seeds too.",
        "",
        "| contender | seeds | " + " | ".join(name for name, _ in _COLUMNS) + " | seconds |",
        "|---|---:|" + "---:|" * (len(_COLUMNS) + 1),
    ]
    for name in names:
        some = [row for row in rows if row["contender"] == name]
        cells = [_cell(np.mean([row[column] for row in some], axis=0)) for column, _ in _COLUMNS]
        seconds = float(np.mean([row["seconds"] for row in some]))
        lines.append(f"| {name} | {len(some)} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join([*lines, "", *_more(rows), "", *_verdicts(rows)])


def _length(contender: str, rounds: int, images: int | None) -> str:
    if contender == "pooled":
        return f"pooled (and alone) {rounds} passes"
    return f"federated {rounds} rounds" + ("" if images is None else f" of at most {images} pictures a hospital")


def _cell(ends: Floats) -> str:
    return f"{ends[0]:.3f} ({ends[1]:.3f} to {ends[2]:.3f})"


def _more(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| contender | without flips | calibration error before | by site |", "|---|---:|---:|---|"]
    for name in JUDGED:
        some = [row for row in rows if row["contender"] == name]
        if some:
            plain, before = (
                np.mean([row[key] for row in some]) for key in ("without flips", "calibration error before")
            )
            sites = ", ".join(
                f"{site.rpartition(':')[2]} {np.mean([row['sites'][site] for row in some]):.3f}"
                for site in some[0]["sites"]
            )
            lines.append(f"| {name} | {plain:.3f} | {before:.3f} | {sites} |")
    return lines


def _verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = {
        name: np.mean([[row[column][0] for column, _ in _COLUMNS] for row in rows if row["contender"] == name], axis=0)
        for name in JUDGED
        if any(row["contender"] == name for row in rows)
    }
    at = {column: position for position, (column, _) in enumerate(_COLUMNS)}
    lines = []
    if POOLED in found:
        lines.append(_verdict("pooled balanced accuracy at least", found[POOLED][0], GOALS["pooled"]))
        lines += [
            _verdict(f"{name}, of pooled, at least", found[name][0] / found[POOLED][0], GOALS["federated"])
            for name in (FEDERATED, FEDERATED + BY_SHARES)
            if name in found
        ]
    for name, scores in found.items():
        lines.append(_verdict(f"{name} melanoma AUC at least", scores[at["melanoma AUC"]], GOALS["melanoma AUC"]))
        error = scores[at["calibration error"]]
        lines.append(_verdict(f"{name} calibration error at most", error, GOALS["calibration error"], most=True))
    return lines


def _verdict(what: str, found: float, goal: float, *, most: bool = False) -> str:
    met = found <= goal if most else found >= goal
    return f"- {what} {goal:g}: {found:.3f}, {'met' if met else 'missed'}"


if __name__ == "__main__":
    sys.exit(report([Path(each) for each in sys.argv[1:]], None))
