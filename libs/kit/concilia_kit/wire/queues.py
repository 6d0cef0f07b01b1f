"""Names at the broker: a node's task queue as the node itself and as all others know it."""

from __future__ import annotations

OWN_QUEUE = "tasks"
"""A node's task queue as the node itself names it: under a prefix of its own."""


def keys_of(address: str) -> str:
    """The prefix of all that a node may touch at the broker; no other node's begins with it."""
    return f"node.{address.lower()}:"


def queue_of(address: str) -> str:
    """A node's task queue as all others name it."""
    return keys_of(address) + OWN_QUEUE
