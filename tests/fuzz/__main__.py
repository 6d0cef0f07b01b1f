"""`python -m tests.fuzz TARGET --seconds 600`: a coverage-guided fuzzer (atheris, libFuzzer) on one target.

What it finds it leaves under var/fuzz/TARGET, and ends with another exit code than 0; inputs that reach something new
are kept beside and tried first the next time. What was found and mended goes into `tests/fuzz/corpus` as `found-…`.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import atheris

from tests.fuzz import checking

_LARGEST = 1 << 16  # bytes of an input
INSTRUMENTED = ["concilia_kit", "concilia_auth", "concilia_client_node", "zipfile", "PIL", "siwe", "abnf"]


def main() -> None:
    """Fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=checking.TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--work", type=Path, default=Path("var/fuzz"))
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    arguments = parser.parse_args()
    found, kept = arguments.work / arguments.target, arguments.work / arguments.target / "inputs"
    kept.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = checking.load(arguments.target)
    for path in checking.corpus(arguments.target):  # imports and caches are no input's growth
        checking.check(target, path.read_bytes())

    def mutator(data: bytes, largest: int, seed: int) -> bytes:
        source = random.Random(seed)
        if hasattr(target, "mutate") and source.random() < 0.7:
            return bytes(target.mutate(data, source)[:largest])
        return bytes(atheris.Mutate(data, largest))

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={arguments.seconds}",
            f"-artifact_prefix={found}/",
            f"-max_len={_LARGEST}",
            f"-seed={arguments.seed}",
            "-timeout=60",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            str(kept),
            str(checking.CORPUS / arguments.target),
        ],
        lambda data: checking.check(target, data),
        custom_mutator=mutator,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
