"""Who holds which role by the followed events: what the contract says, whatever happened, and never too early."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from concilia_chain import contract_file, deployment, follower, main, providers
from concilia_chain.errors import ChainUnavailable
from concilia_chain.follower import Follower
from concilia_chain.ledger import LedgerContract
from concilia_chain.reading import Reading
from concilia_chain.refusals import RefusalReader
from concilia_chain.relay import Relay
from concilia_chain.settings import ChainSettings
from concilia_chain.store import Store
from concilia_kit import database
from concilia_kit.roles import Role
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.chain import AccountRoles
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given, settings
from hypothesis import strategies as st
from web3 import Web3

BUILD = contract_file.read(Path(str(ChainSettings.model_fields["contract_file"].default)))
HOLDERS: list[LocalAccount] = [Account.from_key(bytes([n]) * 32) for n in (11, 12, 13)]


async def roles_of(consortium: Any, address: str) -> AccountRoles:
    answer = await consortium.http.get(f"/v1/members/{address}/roles")
    assert answer.status_code == 200, answer.text
    return AccountRoles.model_validate(answer.json())


async def test_roles_come_and_go(consortium: Any) -> None:
    account = Account.create().address
    assert (await roles_of(consortium, account)).roles == ()
    for role in (Role.HOSPITAL, Role.AUDITOR):
        assert (await consortium.change(role, account)).status_code == 201
    told = await roles_of(consortium, account.lower())
    assert told == AccountRoles(
        address=account, roles=(Role.HOSPITAL, Role.AUDITOR), block=consortium.client.eth.block_number
    )
    assert (await consortium.change(Role.HOSPITAL, account, granted=False)).status_code == 201
    assert (await roles_of(consortium, account)).roles == (Role.AUDITOR,)
    # Those of the constructor are events like any other.
    assert (await roles_of(consortium, consortium.admin.address)).roles == (Role.ADMIN,)


async def test_a_malformed_address(consortium: Any) -> None:
    answer = await consortium.http.get("/v1/members/0x12/roles")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_nothing_is_said_before_the_events_are_read(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as consortium:
        hospital = await consortium.hospital()
    # Taken while the service is away; its database says the contrary.
    consortium.send(consortium.admin, "revokeRole", Role.HOSPITAL.identifier, hospital.address)
    monkeypatch.setattr(follower, "_CURRENT_SECONDS", 0.05)
    with monkeypatch.context() as patched:

        def away(_self: Follower, _block: int | None = None) -> None:
            raise ChainUnavailable("nobody there")

        patched.setattr(Follower, "_follow", away)
        async with start() as consortium:
            answer = await consortium.http.get(f"/v1/members/{hospital.address}/roles")
            assert (answer.status_code, answer.json()["code"]) == (503, "ledger_not_followed")
    monkeypatch.setattr(follower, "_CURRENT_SECONDS", 5.0)
    async with start() as consortium:
        assert (await roles_of(consortium, hospital.address)).roles == ()


async def test_what_was_reorganised_away_does_not_count(start: Any, client: Any, admin: Any) -> None:
    tester = client.provider.ethereum_tester
    async with start() as consortium:
        kept, lost = Account.create().address, Account.create().address
        assert (await consortium.change(Role.AUDITOR, kept)).status_code == 201
        snapshot = tester.take_snapshot()
        # Past the service, which would bring its own transactions back.
        consortium.send(admin, "grantRole", Role.AUDITOR.identifier, lost)
        consortium.send(admin, "revokeRole", Role.AUDITOR.identifier, kept)
        await consortium.get("/v1/events")
        assert (await roles_of(consortium, lost)).roles == (Role.AUDITOR,)
        assert (await roles_of(consortium, kept)).roles == ()
        followed: Follower = consortium.app.state.reading._follower
        with followed._following:  # hold the thread, lest it look at half a reorganisation
            tester.revert_to_snapshot(snapshot)
            for function in ("pause", "unpause", "pause", "unpause"):
                consortium.send(admin, function)
        head = client.eth.block_number
        for _ in range(200):
            if (await roles_of(consortium, kept)).block == head:
                break
            await asyncio.sleep(0.02)
        assert (await roles_of(consortium, kept)).roles == (Role.AUDITOR,)
        assert (await roles_of(consortium, lost)).roles == ()


async def test_between_a_reorganisation_and_its_end_nothing_is_said(
    start: Any, client: Any, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester = client.provider.ethereum_tester
    async with start() as consortium:
        account = Account.create().address
        assert (await consortium.change(Role.AUDITOR, account)).status_code == 201
        snapshot = tester.take_snapshot()
        consortium.send(admin, "revokeRole", Role.AUDITOR.identifier, account)
        await consortium.get("/v1/events")
        followed: Follower = consortium.app.state.reading._follower
        monkeypatch.setattr(follower, "_CURRENT_SECONDS", 0.05)
        with followed._following:
            tester.revert_to_snapshot(snapshot)
            for _ in range(2):
                consortium.send(admin, "pause")
                consortium.send(admin, "unpause")
            consortium.send(admin, "revokeRole", Role.AUDITOR.identifier, account)
            cursor = followed._store.cursor()
            followed._step_back(cursor)
            # The revocation was forgotten with its block, and that of the new chain is not read yet.
            answer = await consortium.http.get(f"/v1/members/{account}/roles")
            assert (answer.status_code, answer.json()["code"]) == (503, "ledger_not_followed")
        monkeypatch.setattr(follower, "_CURRENT_SECONDS", 5.0)
        assert (await roles_of(consortium, account)).roles == ()


# The property: whatever is granted, revoked and renounced, the events leave what the contract has.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grantRole", "revokeRole", "renounceRole"]),
        st.sampled_from(list(Role)),
        st.sampled_from(range(len(HOLDERS))),
    ),
    min_size=1,
    max_size=8,
)


def test_the_events_say_what_the_contract_says(tmp_path: Path, redis_url: str) -> None:
    admin: LocalAccount = Account.create()
    client = providers.connect("eth-tester://", [admin.address, *(each.address for each in HOLDERS)])
    relay = Relay(client, admin, client.eth.chain_id, RefusalReader(BUILD.abi), 10**12)
    engine = database.engine(f"sqlite:///{tmp_path / 'chain.db'}")
    database.migrate(engine, main.MIGRATIONS)

    def open_at(address: str) -> LedgerContract:
        return LedgerContract(client, address, BUILD.abi, caller=admin.address)

    def creation() -> Any:
        return deployment.creation_call(client, BUILD, admin.address, admin.address)

    known = deployment.find_or_deploy(
        engine, client.eth.chain_id, open_at, lambda: deployment.deploy(relay, creation(), lambda: None, 5)
    )
    contract: Any = client.eth.contract(address=Web3.to_checksum_address(known.address), abi=BUILD.abi)
    with redis.Redis.from_url(redis_url) as stream:
        following = Follower(open_at(known.address), store := Store(engine, known), stream, 1)
        unused: Any = None
        service = Reading(open_at(known.address), following, store, unused, unused, confirmations=0)

        def carry_out(function: str, role: Role, holder: LocalAccount) -> None:
            key = holder if function == "renounceRole" else admin
            call = contract.get_function_by_name(function)(role.identifier, holder.address)
            fields = {
                "to": known.address,
                "data": call.build_transaction({"gas": 1})["data"],
                "gas": 200_000,
                "nonce": client.eth.get_transaction_count(key.address),
                "chainId": client.eth.chain_id,
                "maxFeePerGas": 10**10,
                "maxPriorityFeePerGas": 10**9,
            }
            sent = client.eth.send_raw_transaction(key.sign_transaction(fields).raw_transaction)
            assert client.eth.get_transaction_receipt(sent)["status"] == 1

        @settings(max_examples=10, deadline=None)
        @given(STEPS)
        def check(steps: list[tuple[str, Role, int]]) -> None:
            for function, role, holder in steps:
                carry_out(function, role, HOLDERS[holder])
            following.catch_up()
            for account in (admin, *HOLDERS):
                held = [role for role in Role if contract.functions.hasRole(role.identifier, account.address).call()]
                told = service.account_roles(account.address)
                assert (list(told.roles), told.block) == (held, client.eth.block_number)

        check()
    engine.dispose()


# The service's own callers


@pytest.fixture
def auth_service() -> Iterator[tuple[str, dict[str, Any]]]:
    """An auth service's published keys, over HTTP."""
    published: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(published).encode()
            self.send_response(200 if self.path == main.KEYS_PATH else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", published
        server.shutdown()
        thread.join()


async def test_a_token_is_worth_no_more_than_its_bearer_holds(
    start: Any, settings: Any, auth_service: tuple[str, dict[str, Any]]
) -> None:
    url, published = auth_service
    async with start(settings.model_copy(update={"auth_url": url})) as consortium:
        published.update(consortium.issuer.keys())
        verifier: TokenVerifier = consortium.verifier_as_built
        consortium.app.state.verifier = verifier
        auditor = Account.create().address
        path, job = "/v1/events", "a" * 64
        token = consortium.issuer.token(auditor, Role.AUDITOR, Role.COORDINATOR)
        headers = {"Authorization": f"Bearer {token}"}

        assert (await consortium.http.get(path, headers=headers)).json()["code"] == "role_missing"
        assert (await consortium.change(Role.AUDITOR, auditor)).status_code == 201
        assert (await consortium.http.get(path, headers=headers)).status_code == 200
        # One role held, the other one only claimed.
        opening = await consortium.http.post(f"/v1/rounds/{job}/1/abort", headers=headers)
        assert (opening.status_code, opening.json()["code"]) == (403, "role_missing")
        assert (await consortium.change(Role.AUDITOR, auditor, granted=False)).status_code == 201
        after = await consortium.http.get(path, headers=headers)
        assert (after.status_code, after.json()["code"]) == (403, "role_missing")
