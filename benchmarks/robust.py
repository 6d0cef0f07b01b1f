"""Robust rules under attacks, ten hospitals: `make bench-robust`.

`python -m benchmarks.robust --data FOLDER --weights FILE` makes what runs are missing in four parts, then the tables
and the picture: every rule under every attack at all shares with IID hospitals; at a fifth without screening, for the
attacks that screening is there for; at a fifth with uneven hospitals; and at a fifth with two more seeds. All other
arguments are `benchmarks.federated`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import federated, federated_report

RULES = (
    "fedavg",
    "median",
    "trimmed_mean:trim={f}",
    "norm_clipping",
    "geometric_median",
    "krum:hostile={f}",
    "multi_krum:hostile={f}",
    "bulyan:hostile={f}",
    "centred_clipping",
    "fltrust",
    "nnm+trimmed_mean:trim={f},hostile={f}",
    "nnm+geometric_median:hostile={f}",
    "bucketing+geometric_median",
)
ATTACKS = (
    "label_flip",
    "sign_flip",
    "gaussian",
    "alie",
    "ipm",
    "ipm:10",
    "min_max",
    "min_sum",
    "mimic",
    "backdoor",
    "replacement",
    "free_rider",
    "nan",
    "scaled_counts",
)
TELLING = tuple(each for each in ATTACKS if each not in ("gaussian", "min_sum", "nan", "scaled_counts"))
"""All but what screening stops, and what hardly differs from another one."""
STOPPED = ("gaussian", "replacement", "nan", "scaled_counts")
"""What screening is there for, or touches."""
SHARES = ("0.2", "0.3", "0.4")
EVEN, UNEVEN = "iid:10", "dirichlet:0.3:10"
OUT = Path("var/federated/robust.csv")
SETTING = ("--rounds", "15", "--rate", "0.03", "--balance", "sampling", "--head", "linear", "--seeds", "1")
MORE_SEEDS = ("2", "3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    common = ["--out", str(OUT), *SETTING, *given, "--strategies", *RULES]
    federated.main([*common, "--splits", EVEN, "--attacks", *ATTACKS, "--shares", *SHARES])
    federated.main([*common, "--splits", EVEN, "--attacks", *STOPPED, "--shares", "0.2", "--unscreened"])
    federated.main([*common, "--splits", UNEVEN, "--attacks", *TELLING, "--shares", "0.2"])
    federated.main([*common, "--splits", EVEN, "--attacks", *TELLING, "--shares", "0.2", "--seeds", *MORE_SEEDS])
    return federated_report.main(["robust", str(OUT)])


if __name__ == "__main__":
    sys.exit(main())
