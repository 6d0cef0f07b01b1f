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
from concilia_kit.lesions import MELANOMA
from concilia_kit.wire.calibration import TEMPERATURES

from benchmarks import results, scoring
from benchmarks.scoring import Rows, Scored

Floats = npt.NDArray[np.float64]
_COLUMNS = (
    ("balanced accuracy", "balanced_accuracy"),
    ("accuracy", "accuracy"),
    ("macro AUC", "macro_auc"),
    ("melanoma sensitivity", "critical_sensitivity"),
    ("melanoma AUC", "critical_auc"),
    ("calibration error", "calibration_error"),
)
GOALS = {"pooled": 0.76, "melanoma AUC": 0.88, "calibration error": 0.05, "federated": 0.95}


@dataclass(frozen=True)
class Run:
    """One run's held-out pictures: logits (n, classes) plain and over flips, classes, lesions and sites (n,)."""

    recipe: dict[str, Any]
    seconds: float
    plain: Floats
    flips: Floats
    labels: npt.NDArray[np.int64]
    lesions: npt.NDArray[np.str_]
    sites: npt.NDArray[np.str_]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Of a file that a run wrote."""
        with np.load(path, allow_pickle=False) as kept:
            columns = {name: kept[name] for name in ("plain", "flips", "labels", "lesions", "sites")}
            return cls(json.loads(str(kept["recipe"])), float(kept["seconds"]), **columns)

    def rows(self, of: npt.NDArray[np.bool_], *, flips: bool = True, calibrated: bool = True) -> Rows:
        """Some of its pictures as they are answered."""
        logits = self.flips if flips else self.plain
        labels, lesions = self.labels[of], self.lesions[of]
        return Rows(
            cross_fitted(logits[of], labels, lesions) if calibrated else _softmax(logits[of]),
            labels,
            [str(each) for each in lesions],
            MELANOMA,
        )


def cross_fitted(logits: Floats, labels: npt.NDArray[np.int64], lesions: npt.NDArray[np.str_]) -> Floats:
    """Probabilities (n, classes), those of each half of the lesions at the temperature that suits the other half: found
    as jobs find it that calibrate."""
    second = np.array(second_half(lesions.tolist(), labels, 0))
    answered = np.empty_like(logits)
    for half in (second, ~second):
        answered[half] = _softmax(logits[half] / temperature(_losses(logits[~half], labels[~half])))
    return answered


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: Floats = powers / powers.sum(1, keepdims=True)
    return found


def _losses(logits: Floats, labels: npt.NDArray[np.int64]) -> Floats:
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
        everybody = np.ones(len(run.labels), bool)
        rows.append(_row(run.recipe["contender"], run.recipe["seed"], [run.rows(everybody)], run.seconds, run))
    for seed, each in sorted(alone.items()):
        own = [run.rows(run.sites == _site_of(run)) for run in each]
        seconds = sum(run.seconds for run in each)
        rows.append(_row("alone, on own lesions", seed, own, seconds, None))
        everywhere = [run.rows(np.ones(len(run.labels), bool)) for run in each]
        found = [scoring.bootstrap(some) for some in everywhere]
        rows += [
            {"contender": f"{_site_of(run)} alone, on everybody's", "seed": seed, "seconds": run.seconds, **_told(one)}
            for run, one in zip(each, found, strict=True)
        ]
    return rows


def _site_of(run: Run) -> str:
    names = list(dict.fromkeys(run.sites.tolist()))
    return str(names[int(run.recipe["contender"].partition(":")[2])])


def _row(contender: str, seed: int, some: Sequence[Rows], seconds: float, run: Run | None) -> dict[str, Any]:
    together = Rows(
        np.concatenate([each.probabilities for each in some]),
        np.concatenate([each.labels for each in some]),
        [lesion for each in some for lesion in each.lesions],
        MELANOMA,
    )
    row = {"contender": contender, "seed": seed, "seconds": seconds, **_told(scoring.bootstrap(together))}
    if run is not None:
        everybody = np.ones(len(run.labels), bool)
        plain = scoring.score(run.rows(everybody, flips=False))
        raw = scoring.score(run.rows(everybody, calibrated=False))
        row["without flips"] = plain.balanced_accuracy
        row["calibration error before"] = raw.calibration_error
        row["sites"] = {
            str(site): scoring.score(run.rows(run.sites == site)).balanced_accuracy for site in np.unique(run.sites)
        }
    return row


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
        + "; ".join(_length(name, *lengths[name]) for name in ("pooled", "federated") if name in lengths)
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
    for name in ("pooled", "federated"):
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
        for name in ("pooled", "federated")
        if any(row["contender"] == name for row in rows)
    }
    at = {column: position for position, (column, _) in enumerate(_COLUMNS)}
    lines = []
    if "pooled" in found:
        lines.append(_verdict("pooled balanced accuracy at least", found["pooled"][0], GOALS["pooled"]))
    if len(found) > 1:
        share = found["federated"][0] / found["pooled"][0]
        lines.append(_verdict("federated, of pooled, at least", share, GOALS["federated"]))
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
