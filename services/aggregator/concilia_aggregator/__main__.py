"""`python -m concilia_aggregator api` serves the REST interface, `… worker` moves jobs on and serves its health.

`… both` does both in one process, where one machine has to do.

`… partials`, on any machine and as often as one likes, makes sums ahead for rounds with many hospitals.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

from celery import Celery, signals
from concilia_kit import database, health
from concilia_kit.sealing import KeyFileError, Keyring
from concilia_kit.settings import read

from concilia_aggregator.main import MIGRATIONS, build_api, build_both, build_partials, build_worker
from concilia_aggregator.settings import AggregatorSettings

_PATIENCE = 3.0  # seconds a verification under way gets to leave nothing behind


def main() -> None:
    """Start the part that the one argument names."""
    if sys.argv[1:] not in (["api"], ["worker"], ["both"], ["partials"]):
        sys.exit("usage: python -m concilia_aggregator api|worker|both|partials")
    settings, part = read(AggregatorSettings), sys.argv[1]
    try:
        Keyring.read(settings.sealing_key_file, settings.sealing_keys_before)
    except KeyFileError as error:
        sys.exit(f"concilia-aggregator: {error}")
    if part == "partials":
        _make_partials(settings)
        return
    database.migrate_apart(settings.database_url, MIGRATIONS)
    if part == "api":
        from concilia_kit import web

        web.run(build_api(settings), settings)
    else:
        _work(settings, with_api=part == "both")


def _work(settings: AggregatorSettings, *, with_api: bool) -> None:
    from concilia_aggregator.wakeup import QUEUE

    serving: AbstractContextManager[None]
    if with_api:
        from concilia_kit import web

        worker, api, examiner, watch = build_both(settings)
        serving = web.running_beside(api, settings)
    else:
        worker, served, examiner, watch = build_worker(settings)
        health.serve_beside(served, settings)
        serving = nullcontext()
    examiner.start()
    # Celery says when it has a consumer at all, or is told to go; the watch is over the time between.
    signals.worker_ready.connect(lambda **_: watch.start(), weak=False)
    signals.worker_shutting_down.connect(lambda **_: watch.stop(), weak=False)
    try:
        with serving:
            _consume(worker, QUEUE)
    finally:
        examiner.stop(_PATIENCE)


def _make_partials(settings: AggregatorSettings) -> None:
    from concilia_aggregator import summing

    try:
        worker, served = build_partials(settings)
    except ValueError as error:
        sys.exit(str(error))
    health.serve_beside(served, settings)
    _consume(worker, summing.QUEUE)


def _consume(worker: Celery, queue: str) -> None:
    # threads, one at a time: folding is one long NumPy call, and forking would copy open connections. Workers that tell
    # each other of themselves do so on channels, which a service's user has none of.
    alone = ("--without-mingle", "--without-gossip", "--without-heartbeat")
    worker.worker_main(["worker", "-Q", queue, "--pool", "threads", "-c", "1", *alone])


if __name__ == "__main__":
    main()
