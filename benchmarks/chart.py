"""The README's picture of a round: seconds and server memory by contender, from results of `benchmarks.round`.

`python -m benchmarks.chart RESULTS.json PICTURE.svg`, in an environment of its own (`peers/chart.txt`): matplotlib is
needed for nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

mpl.use("svg")
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "concilia", "font.size": 10}

# Okabe and Ito's palette, which people who see colours differently can tell apart.
COLOURS = {
    "concilia": "#0072B2",
    "floor": "#999999",
    "nvflare": "#E69F00",
    "flower, 4 tensors": "#CC79A7",
    "flower": "#D55E00",
}
NAMES = {"concilia": "Concilia", "nvflare": "NVFlare", "flower": "Flower", "flower, 4 tensors": "Flower, 4 tensors"}
PANELS = (("seconds", "seconds a round"), ("server_resident_mb", "server memory at its peak, MB"))


def draw(document: dict[str, Any], picture: Path) -> None:
    """Two panels of bars, both on a logarithmic scale."""
    rows = [row for row in document["rows"] if row["model"]]
    counts = sorted({row["clients"] for row in rows})
    shown = [name for name in COLOURS if any(row["contender"] == name for row in rows)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        for at, name in enumerate(shown):
            values = {row["clients"]: row[key] for row in rows if row["contender"] == name}
            offset = (at - (len(shown) - 1) / 2) * 0.16
            places = [index + offset for index, count in enumerate(counts) if count in values]
            heights = [values[count] for count in counts if count in values]
            bars = axis.bar(places, heights, 0.15, color=COLOURS[name], label=NAMES.get(name, name))
            axis.bar_label(bars, [f"{height:.3g}" if height < 100 else f"{height:.0f}" for height in heights], size=6.5)
        axis.set_yscale("log")
        axis.set_xticks(range(len(counts)), [f"{count} hospitals" for count in counts])
        axis.set_title(title, size=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(picture, metadata={"Date": document["at"][:10]})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
