"""What the chain service measures: its transactions as they pass, its follower at each scrape."""

from __future__ import annotations

from collections.abc import Callable

from concilia_kit.metrics import SECONDS, AtScrape
from prometheus_client import CollectorRegistry, Counter, Histogram

from concilia_chain.follower import Standing

CONFIRMED, REPEATED, REFUSED, FAILED = "confirmed", "repeated", "refused", "failed"
_GAS = (25e3, 50e3, 75e3, 100e3, 150e3, 200e3, 300e3, 500e3, 1e6, 3e6, 10e6, 30e6)


class ChainMetrics:
    """The relay's transactions by function of the contract; without a registry they are shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.seconds = Histogram(
            "concilia_transaction_seconds",
            "Seconds from a call's arrival to its transaction's receipt.",
            ("function",),
            buckets=SECONDS,
            registry=registry,
        )
        self.gas = Histogram(
            "concilia_transaction_gas", "Gas a transaction used.", ("function",), buckets=_GAS, registry=registry
        )
        self.transactions = Counter(
            "concilia_transactions",
            "Calls to relay: confirmed in a block, repeated (had its effect before), refused by the contract, failed.",
            ("function", "outcome"),
            registry=registry,
        )


def watch(registry: CollectorRegistry, standing: Callable[[], Standing]) -> None:
    """Show how far following is. A scrape asks the follower, not the node, which may be what does not answer."""

    def show(name: str, documentation: str, value: Callable[[Standing], float]) -> None:
        registry.register(AtScrape(name, documentation, (), lambda: {(): value(standing())}))

    show("concilia_chain_block", "The newest block that the node showed.", lambda now: now.head)
    show(
        "concilia_follower_lag_blocks",
        "Blocks on the chain whose events are not stored yet.",
        lambda now: max(0, now.head - now.stored),  # below zero after a reorganisation to a shorter chain
    )
    show(
        "concilia_follower_idle_seconds",
        "Seconds since the follower last reached the newest block and published its events.",
        lambda now: now.idle_seconds,
    )
