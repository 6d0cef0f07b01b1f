"""Every strategy beside training on pooled data and on each site alone: `make bench-strategies`.

`python -m benchmarks.strategies --data FOLDER --weights FILE` makes what runs are missing, then the table and the
picture. All other arguments are `benchmarks.federated`'s. The learning rates and server rates were chosen on seeds 100
and 101, which divide the lesions otherwise than the seeds that are reported (docs/strategies-measured.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import federated, federated_report

RUNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("linear", "0.003", ("pooled",)),
    ("linear", "0.01", ("alone", "alone_everywhere", "geometric_median", "qfedavg:q=0.1", "fedbuff")),
    (
        "linear",
        "0.03",
        (
            "fedavg",
            "fedprox:proximal_mu=1",
            "fedavgm:server_rate=1,beta1=0.5",
            "fednova",
            "median",
            "trimmed_mean",
            "norm_clipping",
            "krum",
            "multi_krum",
            "bulyan",
            "centred_clipping",
            "fltrust",
            "nnm+trimmed_mean",
            "bucketing+median",
        ),
    ),
    (
        "linear",
        "0.1",
        ("scaffold", "fedadam:server_rate=0.01", "fedyogi:server_rate=0.01", "fedadagrad:server_rate=0.03"),
    ),
    # Without a hidden layer FedRep has nothing to share, and without batch normalisation FedBN nothing to keep.
    ("layer:64", "0.003", ("pooled",)),
    (
        "layer:64",
        "0.01",
        ("alone", "fedavg", "fedprox:proximal_mu=1", "scaffold", "fednova", "median", "trimmed_mean", "fedrep"),
    ),
    ("batch:64", "0.1", ("pooled",)),
    ("batch:64", "0.03", ("alone", "fedavg", "scaffold", "fedbn", "fedrep")),
)
"""Heads, hospitals' learning rates, and what is trained with them."""
SPLIT = "collections"
OUT = Path("var/federated/strategies.csv")
SETTING = ("--rounds", "20", "--balance", "sampling", "--splits", SPLIT, "--seeds", "1", "2", "3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    common = ["--out", str(OUT), *SETTING, *given]
    for head, rate, names in RUNS:
        federated.main([*common, "--head", head, "--rate", rate, "--strategies", *names])
    return federated_report.main(["strategies", str(OUT)])


if __name__ == "__main__":
    sys.exit(main())
