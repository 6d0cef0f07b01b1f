"""Signatures of keys and of contract wallets, deployed and yet to be: on the EVM within the process, and on Anvil."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from concilia_chain import contract_file, main, providers, signatures
from concilia_chain.errors import ChainUnavailable
from concilia_chain.signatures import Signatures
from concilia_kit.admission import TooBusy
from concilia_kit.roles import Role
from concilia_kit.tokens import ISSUER
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import SignatureCheck
from eth_account.messages import defunct_hash_message
from web3 import Web3

from . import contract_wallets as wallets

TEXT = "127.0.0.1:8000 wants you to sign in with your Ethereum account"
DIGEST = bytes(defunct_hash_message(text=TEXT)).hex()
CREATION = contract_file.read(main.VALIDATOR).bytecode


@dataclass
class World:
    client: Web3
    make: wallets.Maker
    signatures: Signatures
    factory: str

    def valid(self, address: str, signature: str, digest: str = DIGEST) -> bool:
        return self.signatures.is_valid(SignatureCheck(address=address, digest=digest, signature=signature))


@contextlib.contextmanager
def anvil(port: int) -> Iterator[str]:
    """A real Anvil: npm's, else the one on PATH."""
    packaged = sorted((wallets.BUILDS.parent / "node_modules" / "@foundry-rs").glob("anvil-*/bin/anvil*"))
    binary = str(packaged[0]) if packaged else shutil.which("anvil")
    assert binary, "no anvil: run 'npm --prefix contracts ci', or install Foundry"
    with subprocess.Popen([binary, "--port", str(port), "--hardfork", "shanghai", "--silent"]) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=["eth-tester", "anvil"])
def world(request: pytest.FixtureRequest, free_port: Callable[[], int]) -> Iterator[World]:
    payer = wallets.new_key()
    with contextlib.ExitStack() as stack:
        url = "eth-tester://" if request.param == "eth-tester" else stack.enter_context(anvil(free_port()))
        client = providers.connect(url, funded=[payer.address])
        for _ in range(400):
            with contextlib.suppress(ChainUnavailable):
                client.eth.get_block_number()
                break
            time.sleep(0.05)
        if request.param == "anvil":
            gift: Any = {"from": client.eth.accounts[0], "to": payer.address, "value": 10**20}
            client.eth.wait_for_transaction_receipt(client.eth.send_transaction(gift), poll_latency=0.05)
        make = wallets.Maker(client, payer)
        factory = make.deploy(wallets.creation("TestWalletFactory"))
        yield World(client, make, Signatures(providers.node(client), CREATION), factory)


def test_an_accounts_own_key(world: World) -> None:
    key, other = wallets.new_key(), wallets.new_key()
    right = wallets.personal_sign(key, TEXT)
    assert world.valid(key.address, right)
    assert not world.valid(key.address, wallets.personal_sign(other, TEXT))
    assert not world.valid(key.address, wallets.personal_sign(key, TEXT + "!"))
    for signature in ("0x", "0x00", right[:-2], right + "00", right[:-2] + "1d", "0x" + "ff" * 65, "0x" + "00" * 8192):
        assert not world.valid(key.address, signature)


def test_the_address_of_nobody_signs_nothing(world: World) -> None:
    # What the precompile that recovers says of nonsense is the address of nobody.
    for signature in ("0x" + "00" * 64 + "1b", "0x" + "ff" * 64 + "1c"):
        assert not world.valid("0x" + "00" * 20, signature)


def test_a_precompile_that_repeats_what_it_hears_is_no_wallet(world: World) -> None:
    assert not world.valid("0x" + "00" * 19 + "04", "0x", digest="00" * 32)


def test_a_wallet_that_is_deployed(world: World) -> None:
    owner = wallets.new_key()
    wallet = world.make.deploy(wallets.creation("TestWallet", owner.address))
    assert world.valid(wallet, wallets.personal_sign(owner, TEXT))
    assert not world.valid(wallet, wallets.personal_sign(owner, TEXT + "!"))
    assert not world.valid(wallet, wallets.personal_sign(wallets.new_key(), TEXT))
    assert not world.valid(owner.address, wallets.personal_sign(wallets.new_key(), TEXT))
    assert not world.valid(wallet, "0x")


def test_a_wallet_of_the_least_words_says_yes_to_all(world: World) -> None:
    """What the hostile ones below fail by is not the way in which they were made."""
    agreeable = world.make.deploy(wallets.raw(f"7f{wallets.YES}5f5260205ff3"))
    assert world.valid(agreeable, "0x")
    assert world.valid(agreeable, "0x" + "5a" * 4096)


def test_a_wallet_that_is_yet_to_be_made(world: World) -> None:
    owner = wallets.new_key()
    order = wallets.create_order(owner.address)
    future = wallets.future_address(world.factory, owner.address)
    signature = wallets.personal_sign(owner, TEXT)
    whole = wallets.wrapped(world.factory, order, signature)
    assert world.valid(future, whole)
    assert not world.client.eth.get_code(Web3.to_checksum_address(future)), "nothing stays of it"
    assert not world.valid(future, signature), "without its factory there is nobody to ask"
    assert not world.valid(future, wallets.wrapped(world.factory, order, wallets.personal_sign(owner, TEXT + "!")))
    assert not world.valid(
        future, wallets.wrapped(world.factory, order, wallets.personal_sign(wallets.new_key(), TEXT))
    )
    assert not world.valid(wallets.new_key().address, whole), "the factory makes another's"
    assert not world.valid(owner.address, whole)
    assert not world.valid(future, "0x" + "11" * 64 + wallets.SUFFIX)
    assert not world.valid(future, "0x" + wallets.SUFFIX)
    assert not world.valid(future, wallets.wrapped("0x" + "00" * 19 + "04", order, signature))
    world.make.order(world.factory, order)
    assert world.valid(future, signature)
    assert world.valid(future, whole), "who signs does not always know that it was made meanwhile"


def test_a_wallet_that_exists_is_asked_as_it_stands(world: World) -> None:
    """No signature can have something happen first that makes a wallet accept it: here a word is written that anybody
    may write, and that the wallet goes by."""
    word = world.make.deploy(wallets.raw("36600c575f545f5260205ff35b5f355f5500"))  # kept if given, told if not
    asked = f"60205f5f5f73{word[2:].lower()}5afa505f51"
    gullible = world.make.deploy(wallets.raw(f"{asked}602357005b7f{wallets.YES}5f5260205ff3"))
    one = bytes(31) + b"\1"
    assert not world.valid(gullible, "0x")
    assert not world.valid(gullible, wallets.wrapped(word, one, "0x"))
    world.make.order(word, one)
    assert world.valid(gullible, "0x"), "it would have said yes"


@pytest.mark.filterwarnings("ignore:SELFDESTRUCT opcode present:DeprecationWarning")
@pytest.mark.parametrize("code", wallets.HOSTILE.values(), ids=wallets.HOSTILE.keys())
def test_hostile_wallets_and_factories_are_refused(world: World, code: str) -> None:
    owner = wallets.new_key()
    signature = wallets.personal_sign(owner, TEXT)
    hostile = world.make.deploy(wallets.raw(code))
    assert bytes(world.client.eth.get_code(Web3.to_checksum_address(hostile))).hex() == code
    assert not world.valid(hostile, signature)
    order = wallets.create_order(owner.address)
    future = wallets.future_address(world.factory, owner.address)
    assert not world.valid(future, wallets.wrapped(hostile, order, signature))
    assert not world.valid(owner.address, wallets.wrapped(hostile, order, signature))
    assert world.valid(owner.address, signature), "the node goes on"


# ---------------------------------------------------------------------------------------------------------- the node


class Node:
    """Answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, list[Any], float]] = []

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:
        self.asked.append((method, params, seconds))
        if isinstance(self.answer, Exception):
            raise self.answer
        told: dict[str, Any] = self.answer
        return told


CHECK = SignatureCheck(address="0x" + "11" * 20, digest=DIGEST, signature="0x00")


def test_calls_are_bounded_and_nobodys() -> None:
    node = Node({"result": "0x01"})
    assert Signatures(node, CREATION).is_valid(CHECK)
    ((method, (call, block), seconds),) = node.asked
    assert (method, block, seconds) == ("eth_call", "latest", signatures.SECONDS)
    assert (call["from"], int(call["gas"], 16)) == ("0x" + "00" * 20, signatures.GAS)
    assert call.keys() == {"from", "gas", "data"}


@pytest.mark.parametrize(
    "answer",
    [
        {"result": "0x00"},
        {"result": "0x"},
        {"result": "0x" + "00" * 31 + "01"},
        {"result": None},
        {"result": True},
        {"result": 1},
        {},
        {"error": {"code": 3, "message": "execution reverted", "data": "0x01"}},
        {"error": {"code": -32000, "message": "out of gas"}},
        {"error": {"code": -32000, "message": "execution aborted (timeout = 5s)"}},
        {"error": {"message": "x" * 10_000}},
        {"error": "no"},
        {"error": {"code": 3}, "result": "0x01"},
    ],
)
def test_what_is_no_clear_yes_is_a_no(answer: dict[str, Any]) -> None:
    assert not Signatures(Node(answer), CREATION).is_valid(CHECK)


@pytest.mark.parametrize(
    "answer",
    [
        ChainUnavailable("the node does not answer"),
        {"error": {"code": -32005, "message": "limit exceeded"}},
        {"error": {"code": -32601, "message": "the method does not exist"}},
    ],
)
def test_a_node_in_trouble_is_not_a_refusal(answer: Any) -> None:
    with pytest.raises(ChainUnavailable):
        Signatures(Node(answer), CREATION).is_valid(CHECK)


def test_so_many_at_one_time() -> None:
    inside, leave = threading.Semaphore(0), threading.Event()

    class Slow(Node):
        def ask(self, *given: Any) -> dict[str, Any]:
            inside.release()
            assert leave.wait(60)
            return super().ask(*given)

    checking = Signatures(Slow({"result": "0x01"}), CREATION)
    with ThreadPoolExecutor(signatures.AT_ONCE) as pool:
        running = [pool.submit(checking.is_valid, CHECK) for _ in range(signatures.AT_ONCE)]
        for _ in running:
            assert inside.acquire(timeout=60)
        with pytest.raises(TooBusy) as busy:
            checking.is_valid(CHECK)
        assert busy.value.problem_status == 429
        leave.set()
        assert all(each.result() for each in running)
    assert checking.is_valid(CHECK), "places are given back"


# ---------------------------------------------------------------------------------------------------------- over HTTP


async def test_only_the_auth_service_asks(consortium: Any) -> None:
    key = wallets.new_key()
    check = {"address": key.address, "digest": DIGEST, "signature": wallets.personal_sign(key, TEXT)}
    bare = await consortium.http.post("/v1/signatures", json=check)
    assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized")
    for role in Role:
        refused = await consortium.post("/v1/signatures", check, role)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    own = {"Authorization": f"Bearer {consortium.issuer.token(ISSUER)}"}
    assert (await consortium.http.post("/v1/signatures", json=check, headers=own)).json() == {"valid": True}
    other = {**check, "address": wallets.new_key().address}
    answer = await consortium.http.post("/v1/signatures", json=other, headers=own)
    assert (answer.status_code, answer.json()) == (200, {"valid": False})
    foreign = {"Authorization": f"Bearer {consortium.issuer.token(ISSUER, audience=Audience.MODEL)}"}
    assert (await consortium.http.post("/v1/signatures", json=check, headers=foreign)).status_code == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"address": "0x12"}, 422),
        ({"digest": "00"}, 422),
        ({"signature": "5a"}, 422),
        ({"signature": "0x5"}, 422),
        ({"signature": "0x" + "5a" * 8193}, 422),
        ({"signature": "0x" + "5a" * 40_000}, 413),
        ({"block": "0x1"}, 422),
    ],
)
async def test_what_is_asked_is_bounded(consortium: Any, change: dict[str, Any], status: int) -> None:
    own = {"Authorization": f"Bearer {consortium.issuer.token(ISSUER)}"}
    check = {"address": "0x" + "11" * 20, "digest": DIGEST, "signature": "0x00", **change}
    answer = await consortium.http.post("/v1/signatures", json=check, headers=own)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
