"""What gets through the door to the node, what does not, and how long anybody waits."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from concilia_chain import providers, rpc
from concilia_chain.door import Door
from concilia_chain.errors import ChainUnavailable
from concilia_chain.providers import NodeProvider
from concilia_chain.rpc import Asked, Failed
from hypothesis import given
from hypothesis import strategies as st

ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
LOWER = ADDRESS.lower()
HASH = "0x" + "Ab" * 32
NOBODY = "0x" + "00" * 20
GAS = hex(rpc.GAS)


def asked(method: Any, /, *params: Any, **others: Any) -> Asked | Failed:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)} | others
    (request,) = rpc.read(json.dumps(body).encode()).requests
    return request


@pytest.mark.parametrize(
    ("method", "params", "passed_on"),
    [
        ("eth_blockNumber", [], []),
        ("eth_getBalance", [ADDRESS], [LOWER, "latest"]),
        ("eth_getBalance", [ADDRESS, "0x0A"], [LOWER, "0xa"]),
        ("eth_getCode", [ADDRESS, "pending"], [LOWER, "pending"]),
        ("eth_getTransactionCount", [ADDRESS, "safe"], [LOWER, "safe"]),
        ("eth_getBlockByNumber", ["0x1", False], ["0x1", False]),
        ("eth_getBlockByNumber", ["finalized"], ["finalized", False]),
        ("eth_getTransactionReceipt", [HASH], [HASH.lower()]),
        ("eth_feeHistory", ["0x5", "latest", [10, 50.5]], ["0x5", "latest", [10, 50.5]]),
        ("eth_feeHistory", [5, "0x2"], ["0x5", "0x2", []]),
        (
            "eth_call",
            [{"to": ADDRESS}],
            [{"from": NOBODY, "to": LOWER, "data": "0x", "value": "0x0", "gas": GAS}, "latest"],
        ),
        (
            "eth_call",
            [
                {"from": ADDRESS, "to": ADDRESS, "data": "0xAB", "input": "0xab", "gas": "0xffffffff", "gasPrice": "1"},
                "0x1",
            ],
            [{"from": LOWER, "to": LOWER, "data": "0xab", "value": "0x0", "gas": GAS}, "0x1"],
        ),
        (
            "eth_estimateGas",
            [{"to": ADDRESS, "value": "0x00", "gas": "0x5208", "nonce": "0x1", "from": None}, "latest"],
            [{"from": NOBODY, "to": LOWER, "data": "0x", "value": "0x0", "gas": "0x5208"}],
        ),
    ],
)
def test_what_gets_through_is_rebuilt(method: str, params: list[Any], passed_on: list[Any]) -> None:
    assert asked(method, *params) == Asked(1, method, passed_on)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("eth_blockNumber", ["latest"]),
        ("eth_getBalance", []),
        ("eth_getBalance", ["0x12", "latest"]),
        ("eth_getBalance", [LOWER + "00", "latest"]),
        ("eth_getBalance", [LOWER + "\n", "latest"]),
        ("eth_getBalance", [7, "latest"]),
        ("eth_getBalance", [LOWER, "newest"]),
        ("eth_getBalance", [LOWER, None]),
        ("eth_getBalance", [LOWER, 5]),
        ("eth_getBalance", [LOWER, "0x" + "f" * 16]),
        ("eth_getBalance", [LOWER, {"blockNumber": "0x1"}]),
        ("eth_getBalance", [LOWER, ["latest"]]),
        ("eth_getBalance", [LOWER, "latest", "latest"]),
        ("eth_getBlockByNumber", ["0x1", True]),
        ("eth_getBlockByNumber", ["0x1", 0]),
        ("eth_getTransactionByHash", [HASH[:-2]]),
        ("eth_feeHistory", [0, "latest", []]),
        ("eth_feeHistory", [101, "latest", []]),
        ("eth_feeHistory", [True, "latest", []]),
        ("eth_feeHistory", ["0xfff", "latest", []]),
        ("eth_feeHistory", [1, "latest", [101]]),
        ("eth_feeHistory", [1, "latest", [-1]]),
        ("eth_feeHistory", [1, "latest", [2, 1]]),
        ("eth_feeHistory", [1, "latest", ["1"]]),
        ("eth_feeHistory", [1, "latest", [1] * 11]),
        ("eth_call", [{}, "latest"]),
        ("eth_call", [{"data": "0x6000"}, "latest"]),
        ("eth_call", ["0x", "latest"]),
        ("eth_call", [{"to": LOWER, "data": "0xa"}, "latest"]),
        ("eth_call", [{"to": LOWER, "data": "0x01", "input": "0x02"}, "latest"]),
        ("eth_call", [{"to": LOWER, "gas": 5}, "latest"]),
        ("eth_call", [{"to": LOWER, "blobs": []}, "latest"]),
        ("eth_call", [{"to": LOWER}, "latest", {LOWER: {"code": "0x00"}}]),
        ("eth_estimateGas", [{"data": "0x6000"}]),
    ],
)
def test_what_has_another_shape_does_not(method: str, params: list[Any]) -> None:
    failed = asked(method, *params)
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code) == (1, rpc.INVALID_PARAMS)


def test_parameters_by_name_are_not_taken() -> None:
    assert asked("eth_chainId", params={}) == asked("eth_chainId", params={"a": 1})
    assert asked("eth_chainId", params={})[1] == rpc.INVALID_PARAMS


@pytest.mark.parametrize(
    ("others", "id_"),
    [
        ({"jsonrpc": "1.0"}, 1),
        ({"jsonrpc": None}, 1),
        ({"method": 7}, 1),
        ({"params": None}, 1),
        ({"params": "latest"}, 1),
        ({"id": True}, None),
        ({"id": []}, None),
        ({"id": {"a": 1}}, None),
        ({"id": "x" * 257}, None),
        ({"id": "x", "method": None}, "x"),
    ],
)
def test_what_is_no_request(others: dict[str, Any], id_: Any) -> None:
    failed = asked("eth_chainId", **others)
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code) == (id_, rpc.INVALID_REQUEST)


def test_an_id_beyond_all_numbers() -> None:
    (failed,) = rpc.read(b'{"jsonrpc": "2.0", "id": 1e999, "method": "eth_chainId"}').requests
    assert (failed.id, failed[1]) == (None, rpc.INVALID_REQUEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(rpc.METHODS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": JSON,
        "method": st.sampled_from(rpc.METHODS) | JSON,
        "params": JSON,
    },
)


class Parrot:
    """A node that knows one answer to everything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.heard: list[tuple[str, list[Any], float]] = []

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        self.heard.append((method, params, seconds))
        if isinstance(self.answer, Exception):
            raise self.answer
        told: dict[str, Any] = self.answer
        return told


@given(
    st.binary(max_size=200)
    | (REQUESTS | st.lists(REQUESTS, max_size=22) | JSON).map(lambda it: json.dumps(it).encode())
)
def test_anything_is_answered_in_the_forms_of_json_rpc(body: bytes) -> None:
    node = Parrot({"result": "0x1"})
    answer = Door(node, 5, 10).answer(body)
    json.dumps(answer, allow_nan=False).encode()
    for each in answer if isinstance(answer, list) else [] if answer is None else [answer]:
        assert each.keys() - {"result", "error"} == {"jsonrpc", "id"}
        assert ("result" in each) != ("error" in each)
    assert {method for method, _, _ in node.heard} <= set(rpc.METHODS)


def told(door: Door, method: str = "eth_blockNumber", *params: Any) -> Any:
    return door.answer(json.dumps({"jsonrpc": "2.0", "id": "x", "method": method, "params": list(params)}).encode())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"id": 0, "result": None}, {"result": None}),
        (
            {"error": {"code": 3, "message": "no", "data": "0xab"}},
            {"error": {"code": 3, "message": "no", "data": "0xab"}},
        ),
        (
            {"error": {"code": 3, "message": "no", "data": {"result": "0xab", "hash": "0x"}}},
            {"error": {"code": 3, "message": "no", "data": "0xab"}},
        ),
        ({"error": {"code": 3, "message": "n" * 300, "stack": "…"}}, {"error": {"code": 3, "message": "n" * 200}}),
        ({"error": "no"}, {"error": {"code": -32603, "message": "the node's answer makes no sense"}}),
        (ChainUnavailable("away"), {"error": {"code": -32603, "message": "away"}}),
    ],
)
def test_what_a_node_says_is_told(answer: Any, expected: dict[str, Any]) -> None:
    assert told(Door(Parrot(answer), 5, 10)) == {"jsonrpc": "2.0", "id": "x", **expected}


def test_what_never_changes_needs_no_node() -> None:
    door = Door(Parrot(ChainUnavailable("away")), 1337, 10)
    assert told(door, "eth_chainId")["result"] == "0x539"
    assert told(door, "net_version")["result"] == "1337"


def test_a_batch_waits_no_longer_than_one() -> None:
    moments = iter([0.0, 1.0, 4.0, 9.0, 10.0, 11.0])
    node = Parrot({"result": "0x1"})
    door = Door(node, 5, 10, clock=lambda: next(moments))
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"}
    answers = door.answer(json.dumps([request] * 5).encode())
    assert [seconds for _, _, seconds in node.heard] == [9.0, 6.0, 1.0]
    assert isinstance(answers, list)
    assert [each.get("error", {}).get("code") for each in answers] == [None, None, None, -32603, -32603]


def test_few_are_let_in_at_a_time() -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    class Slow(Parrot):
        def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
            entered.release()
            leave.wait(10)
            return super().ask(method, params, seconds)

    door = Door(Slow({"result": "0x1"}), 5, 10)
    with ThreadPoolExecutor(8) as pool:
        inside = [pool.submit(told, door) for _ in range(8)]
        for _ in range(8):
            assert entered.acquire(timeout=10)
        assert told(door)["error"]["code"] == rpc.LIMIT_EXCEEDED
        assert told(door, "eth_chainId")["result"] == "0x5"
        leave.set()
        assert [each.result()["result"] for each in inside] == ["0x1"] * 8
    assert told(door)["result"] == "0x1"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def answer_with(server: socket.socket, *pieces: bytes, pause: float = 0.0) -> threading.Thread:
    """Answer one request piece by piece; without pieces, never."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except OSError:
                    return
                time.sleep(pause)
            if not pieces:
                connection.recv(1)  # until the other side has had enough

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def http_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def provider(server: socket.socket) -> NodeProvider:
    return NodeProvider(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_node_is_asked_as_it_is(server: socket.socket) -> None:
    thread = answer_with(server, http_answer(b'{"id": 0, "result": {"extraData": "0x"}}'))
    assert provider(server).ask("eth_blockNumber", [], 5) == {"id": 0, "result": {"extraData": "0x"}}
    thread.join()


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"[" * 500])
def test_a_node_that_makes_no_sense(server: socket.socket, body: bytes) -> None:
    thread = answer_with(server, http_answer(body))
    with pytest.raises(ChainUnavailable):
        provider(server).ask("eth_blockNumber", [], 5)
    thread.join()


def test_a_node_that_does_not_answer(server: socket.socket, free_port: Any) -> None:
    with pytest.raises(ChainUnavailable):
        NodeProvider(f"http://127.0.0.1:{free_port()}").ask("eth_blockNumber", [], 5)
    thread = answer_with(server)
    with pytest.raises(ChainUnavailable):
        provider(server).ask("eth_blockNumber", [], 0.2)
    thread.join()


def test_a_node_that_never_comes_to_an_end(server: socket.socket) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    thread = answer_with(server, head, *[b" " * 65536] * 12, pause=0.05)
    with pytest.raises(ChainUnavailable):
        provider(server).ask("eth_blockNumber", [], 0.3)
    thread.join()


def test_a_node_that_says_too_much(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_MAX_ANSWER", 1000)
    thread = answer_with(server, http_answer(b'{"result": "' + b"0" * 2000 + b'"}'))
    with pytest.raises(ChainUnavailable):
        provider(server).ask("eth_blockNumber", [], 5)
    thread.join()
