"""Pictures of `benchmarks.federated`'s rows.

`python -m benchmarks.federated_chart robust|strategies FILE.csv PICTURE.svg`, in an environment of its own
(`peers/chart.txt`): matplotlib is needed for nothing else.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.federated_tables import BASELINES, GOAL, cells, grid, kept, order, rows_of

mpl.use("svg")
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "concilia", "font.size": 8}

# Okabe and Ito's palette, which people who see colours differently can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"


def robust(table: Path, picture: Path) -> None:
    """A panel a split and share: rules by attacks, what each keeps of its clean balanced accuracy."""
    rows = rows_of(table)
    found = cells(rows)
    panels = [(split, share) for split in order(row["split"] for row in rows) for share in (0.2, 0.3, 0.4)]
    shown = [(split, share, grid(found, split, share)) for split, share in panels]
    shown = [each for each in shown if each[2].strategies]
    height = sum(0.24 * len(each[2].strategies) + 1.0 for each in shown)
    figure, axes = plt.subplots(len(shown), 1, figsize=(10, height), layout="constrained", squeeze=False)
    for axis, (split, share, cells_) in zip(axes[:, 0], shown, strict=True):
        values = [
            [
                kept(found, cells_.keys[name, each]) if (name, each) in cells_.keys else float("nan")
                for each in cells_.attacks
            ]
            for name in cells_.strategies
        ]
        axis.imshow(values, cmap="cividis", vmin=0.2, vmax=1.0, aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    colour = "black" if value > 0.65 else "white"
                    weight = "bold" if value >= GOAL else "normal"
                    axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour, weight=weight, size=7)
        axis.set_xticks(range(len(cells_.attacks)), cells_.attacks, rotation=30, ha="right")
        axis.set_yticks(range(len(cells_.strategies)), cells_.strategies)
        axis.set_title(
            f"{split}, {share:.0%} hostile: balanced accuracy kept, per cent (bold: {GOAL:.0%} and more)", size=9
        )
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    figure.savefig(picture, metadata={"Date": None})


def strategies(table: Path, picture: Path) -> None:
    """Balanced accuracy of each strategy with the main head, pooled and at the worst site, beside pooled training."""
    rows = rows_of(table)
    level = rows[0]["level"]
    found = {key[1]: cell for key, cell in cells(row for row in rows if row["level"] == level).items()}
    names = sorted(found, key=lambda name: (name in BASELINES, found[name].balanced))
    figure, axis = plt.subplots(figsize=(8, 0.26 * len(names) + 1.2), layout="constrained")
    for metric, colour, words in (("balanced_accuracy", BLUE, "all sites"), ("worst_site", ORANGE, "worst site")):
        axis.errorbar(
            [found[name].mean[metric] for name in names],
            range(len(names)),
            xerr=[found[name].deviation[metric] for name in names],
            fmt="o",
            color=colour,
            markersize=4,
            linewidth=1,
            label=words,
        )
    if "pooled" in found:
        pooled = found["pooled"].balanced
        axis.axvline(pooled, color=GREY, linewidth=1)
        axis.axvline(GOAL * pooled, color=GREY, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("balanced accuracy, mean and standard deviation over seeds; lines: pooled training, and 95 % of it")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    {"robust": robust, "strategies": strategies}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
