"""What a wallet may ask the node through this service: a few reads, each by the shape of its parameters. Pure.

Nothing is passed on as it came: parameters are rebuilt from what was recognised, so that nothing unknown reaches the
node. Calls have no fees and a bounded gas; they need no ether, and cannot keep a node busy for long.
Source: JSON-RPC 2.0; EIP-1474 and the Ethereum execution API for methods, shapes and error codes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, LIMIT_EXCEEDED = -32603, -32005

MAX_BODY = 16 * 1024
MAX_BATCH = 20
GAS = 10_000_000
"""Gas that a call or an estimate may use: the largest transaction of this contract needs less."""

_MAX_BRACKETS = 1000
MAX_ID = 256  # characters of a request's id, which is repeated
_MAX_HISTORY = 100  # blocks
_MAX_PERCENTILES = 10
_TAGS = frozenset({"latest", "earliest", "pending", "safe", "finalized"})
_NOBODY = "0x" + "00" * 20
_CALL_MEMBERS = {"from", "to", "data", "input", "value", "gas"}
# Known, and of no consequence for a read: left out.
_IGNORED_MEMBERS = {"gasPrice", "maxFeePerGas", "maxPriorityFeePerGas", "nonce", "type", "chainId", "accessList"}


class Asked(NamedTuple):
    """A request that may be answered; `id` is repeated in the answer."""

    id: str | int | float | None
    method: str
    params: list[Any]


class Failed(NamedTuple):
    """A request that may not, and why."""

    id: str | int | float | None
    code: int
    message: str


class Message(NamedTuple):
    """The requests of one body, in order and without notifications, which want no answer."""

    requests: list[Asked | Failed]
    is_batch: bool


def read(body: bytes) -> Message:
    """The requests in a body; never raises."""
    # py-evm raises the interpreter's recursion limit so far that deep nesting would end the process, not the parsing.
    if body.count(b"[") + body.count(b"{") > _MAX_BRACKETS:
        return Message([Failed(None, INVALID_REQUEST, "too many lists and objects")], is_batch=False)
    try:
        document = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Message([Failed(None, PARSE_ERROR, "this is no JSON")], is_batch=False)
    if not isinstance(document, list):
        return Message(_request(document), is_batch=False)
    if not 1 <= len(document) <= MAX_BATCH:
        return Message([Failed(None, INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests")], is_batch=False)
    return Message([request for item in document for request in _request(item)], is_batch=True)


def result(id_: str | int | float | None, value: Any) -> dict[str, Any]:
    """An answer."""
    return {"jsonrpc": "2.0", "id": id_, "result": value}


def error(failed: Failed, data: str | None = None) -> dict[str, Any]:
    """An answer that says what is wrong; `data` is what a contract gave as its reason."""
    said = {"code": failed.code, "message": failed.message} | ({} if data is None else {"data": data})
    return {"jsonrpc": "2.0", "id": failed.id, "error": said}


def _request(item: Any) -> list[Asked | Failed]:
    """One request; nothing for a notification."""
    if not isinstance(item, dict):
        return [Failed(None, INVALID_REQUEST, "a request is an object")]
    id_ = item.get("id")
    if not _is_id(id_):
        return [Failed(None, INVALID_REQUEST, "an id is a short string, a number or null")]
    method, params = item.get("method"), item.get("params", [])
    if item.get("jsonrpc") != "2.0" or not isinstance(method, str) or not isinstance(params, (list, dict)):
        return [Failed(id_, INVALID_REQUEST, "this is no request of JSON-RPC 2.0")]
    if "id" not in item:
        return []
    if method not in _METHODS:
        return [Failed(id_, METHOD_NOT_FOUND, "this door leads to a few reads only; ask a node of your own")]
    try:
        return [Asked(id_, method, _METHODS[method](params))]
    except ValueError as wrong:
        return [Failed(id_, INVALID_PARAMS, str(wrong))]


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ID
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# Shapes: a value in, the value to pass on out, `ValueError` where it does not fit.

Shape = Callable[[Any], Any]
Params = Callable[[Any], list[Any]]


def _matching(pattern: str, what: str) -> Shape:
    expression = re.compile(pattern)

    def shape(value: Any) -> str:
        if not isinstance(value, str) or expression.fullmatch(value) is None:
            raise ValueError(f"not {what}")
        return value.lower()

    return shape


_address = _matching("0x[0-9a-fA-F]{40}", "an address")
_hash = _matching("0x[0-9a-fA-F]{64}", "a hash of 32 bytes")
_bytes = _matching("0x([0-9a-fA-F]{2})*", "bytes in hexadecimal")
_hexadecimal = _matching("0x[0-9a-fA-F]{1,64}", "a number in hexadecimal")


def _quantity(value: Any) -> str:
    return hex(int(_hexadecimal(value), 16))


def _block(value: Any) -> str:
    if isinstance(value, str) and value in _TAGS:
        return value
    number = _quantity(value)
    if int(number, 16) >= 2**63:
        raise ValueError("not the number of a block")
    return number


def _without_transactions(value: Any) -> bool:
    if value is not False:
        raise ValueError("blocks are told without their transactions")
    return False


def _history(value: Any) -> str:
    count = value if isinstance(value, int) and not isinstance(value, bool) else int(_quantity(value), 16)
    if not 1 <= count <= _MAX_HISTORY:
        raise ValueError(f"a history has 1 to {_MAX_HISTORY} blocks")
    return hex(count)


def _percentiles(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) > _MAX_PERCENTILES:
        raise ValueError(f"percentiles are a list of {_MAX_PERCENTILES} at most")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each <= 100:
            raise ValueError("a percentile lies between 0 and 100")
    if value != sorted(value):
        raise ValueError("percentiles come in ascending order")
    return value


def _call(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value.keys() <= _CALL_MEMBERS | _IGNORED_MEMBERS:
        raise ValueError("a call is an object with from, to, data, value and gas")
    if value.get("to") is None:
        raise ValueError("a call names whom it calls")
    data = {_bytes(value[name]) for name in ("data", "input") if value.get(name) is not None}
    if len(data) > 1:
        raise ValueError("data and input differ")
    gas = GAS if value.get("gas") is None else min(GAS, int(_quantity(value["gas"]), 16))
    return {
        "from": _NOBODY if value.get("from") is None else _address(value["from"]),
        "to": _address(value["to"]),
        "data": data.pop() if data else "0x",
        "value": "0x0" if value.get("value") is None else _quantity(value["value"]),
        "gas": hex(gas),
    }


def _params(*shapes: Shape, default: Any = None) -> Params:
    """Positional parameters; the last one may be missing where it has a default."""

    def shape(params: Any) -> list[Any]:
        if isinstance(params, list) and default is not None and len(params) == len(shapes) - 1:
            params = [*params, default]
        if not isinstance(params, list) or len(params) != len(shapes):
            raise ValueError(f"this method has {len(shapes)} parameters by position")
        return [each(value) for each, value in zip(shapes, params, strict=True)]

    return shape


def _estimate(params: Any) -> list[Any]:
    # On the newest state, whatever block is named: an estimate is for a transaction that comes next.
    return _params(_call, _block, default="latest")(params)[:1]


_METHODS: Mapping[str, Params] = {
    "eth_blockNumber": _params(),
    "eth_call": _params(_call, _block, default="latest"),
    "eth_chainId": _params(),
    "eth_estimateGas": _estimate,
    "eth_feeHistory": _params(_history, _block, _percentiles, default=[]),
    "eth_gasPrice": _params(),
    "eth_getBalance": _params(_address, _block, default="latest"),
    "eth_getBlockByNumber": _params(_block, _without_transactions, default=False),
    "eth_getCode": _params(_address, _block, default="latest"),
    "eth_getTransactionByHash": _params(_hash),
    "eth_getTransactionCount": _params(_address, _block, default="latest"),
    "eth_getTransactionReceipt": _params(_hash),
    "net_version": _params(),
    "web3_clientVersion": _params(),
}
METHODS = tuple(_METHODS)
