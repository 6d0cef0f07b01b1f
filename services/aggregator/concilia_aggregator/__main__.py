"""`python -m concilia_aggregator api` serves the REST interface, `… worker` moves jobs on and serves its health."""

from __future__ import annotations

import sys

from concilia_kit import web
from concilia_kit.settings import read

from concilia_aggregator.main import build_api, build_worker
from concilia_aggregator.settings import AggregatorSettings
from concilia_aggregator.wakeup import QUEUE

_PATIENCE = 3.0  # seconds a verification under way gets to leave nothing behind


def main() -> None:
    """Start the part that the one argument names."""
    if sys.argv[1:] not in (["api"], ["worker"]):
        sys.exit("usage: python -m concilia_aggregator api|worker")
    settings = read(AggregatorSettings)
    if sys.argv[1] == "api":
        web.run(build_api(settings), settings)
    else:
        worker, health, examiner = build_worker(settings)
        web.run_beside(health, settings)
        examiner.start()
        # threads, one at a time: folding is one long NumPy call, and forking would copy open connections
        try:
            worker.worker_main(["worker", "-Q", QUEUE, "--pool", "threads", "-c", "1", "--without-mingle"])
        finally:
            examiner.stop(_PATIENCE)


if __name__ == "__main__":
    main()
