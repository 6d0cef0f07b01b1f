"""What the Merkle tree itself costs: Concilia's and PyPI's pymerkle over the same leaves, in one run."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pymerkle
from concilia_kit import merkle

_DATA = 32 + 65  # bytes: an EIP-712 digest and a signature


class TreeCost(NamedTuple):
    """Microseconds a leaf: hashing all leaves into a root, all proofs, verifying all proofs."""

    build: float
    prove: float
    verify: float


class Compared(NamedTuple):
    """Both trees' costs over the same leaves."""

    leaves: int
    concilia: TreeCost
    pymerkle: TreeCost


def compare(leaves: int, repetitions: int) -> Compared:
    """Medians over repetitions. Raises `RuntimeError` where the trees disagree about root or proofs."""
    data = [secrets.token_bytes(_DATA) for _ in range(leaves)]
    runs = [(_concilia(data), _pymerkle(data)) for _ in range(repetitions)]
    if len({told for pair in runs for _, told in pair}) != 1:
        raise RuntimeError(f"the two trees over {leaves} leaves disagree")
    ours, theirs = ([cost for cost, _ in each] for each in zip(*runs, strict=True))
    return Compared(leaves, _median(ours), _median(theirs))


def _concilia(data: list[bytes]) -> tuple[TreeCost, tuple[Any, ...]]:
    indices = range(len(data))
    tree, build = _timed(lambda: merkle.Tree(merkle.leaf(each) for each in data))
    proofs, prove = _timed(lambda: [tree.proof(at) for at in indices])
    hashes = [merkle.leaf(each) for each in data]
    right, verify = _timed(
        lambda: [merkle.verify(hashes[at], at, len(data), proofs[at], tree.root) for at in indices],
    )
    if not all(right):
        raise RuntimeError("a proof does not verify")
    return _cost(len(data), build, prove, verify), (tree.root, *map(tuple, proofs))


def _pymerkle(data: list[bytes]) -> tuple[TreeCost, tuple[Any, ...]]:
    indices = range(1, len(data) + 1)

    def built() -> pymerkle.InmemoryTree:
        made = pymerkle.InmemoryTree(algorithm="sha256")
        for each in data:
            made.append_entry(each)
        made.get_state()
        return made

    tree, build = _timed(built)
    root = tree.get_state()
    proofs, prove = _timed(lambda: [tree.prove_inclusion(at) for at in indices])
    hashes = [merkle.leaf(each) for each in data]
    _, verify = _timed(
        lambda: [
            pymerkle.verify_inclusion(leaf, root, proof)  # raises where one is wrong
            for leaf, proof in zip(hashes, proofs, strict=True)
        ],
    )
    return _cost(len(data), build, prove, verify), (root, *(tuple(proof.path[1:]) for proof in proofs))


def _cost(leaves: int, *seconds: float) -> TreeCost:
    return TreeCost(*(each / leaves * 1e6 for each in seconds))


def _median(costs: list[TreeCost]) -> TreeCost:
    return TreeCost(*(statistics.median(each) for each in zip(*costs, strict=True)))


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began
