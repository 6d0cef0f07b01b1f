"""Tasks as this coordinator signs them, so that a hospital knows who asks: whoever writes to its queue is not enough.

One signature for all hospitals that are asked for the same; deterministic (RFC 6979), so that each process says the
same. Where it is valid the ledger says: one contract on one chain (EIP-712).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from concilia_kit import digests, signing
from concilia_kit.signing import Domain, TaskOrder
from eth_account.signers.local import LocalAccount
from pydantic import JsonValue

_REMEMBERED = 256


class Orders:
    """Signs tasks by name and content. `domain` is asked once, and raises `Problem` where it is not to be had yet."""

    def __init__(self, account: LocalAccount, domain: Callable[[], Domain]) -> None:
        self._account = account
        self._ask = domain
        self._domain: Domain | None = None
        self._signed: OrderedDict[TaskOrder, str] = OrderedDict()
        self._lock = threading.Lock()

    def sign(self, name: str, task: Mapping[str, JsonValue]) -> str:
        """The signature of a task in its JSON form, as 0x-prefixed hexadecimal. Raises `Problem`."""
        order = TaskOrder(name=name, digest=digests.of_json(dict(task)))
        with self._lock:
            if (signature := self._signed.get(order)) is None:
                signature = self._signed[order] = signing.sign(order, self._known(), self._account)
                if len(self._signed) > _REMEMBERED:
                    self._signed.popitem(last=False)
        return signature

    def domain(self) -> Domain:
        """Where signatures are valid. Raises `Problem`."""
        with self._lock:
            return self._known()

    def _known(self) -> Domain:
        if self._domain is None:
            self._domain = self._ask()
        return self._domain
