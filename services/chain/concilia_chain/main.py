"""Constructs the service from its settings: the only place that opens connections."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis
import tenacity
from concilia_kit import database, http, keystore, metrics, web
from concilia_kit.roles import Role
from concilia_kit.sessions import SessionsEnded
from concilia_kit.signing import Domain
from concilia_kit.tokens import TokenVerifier
from concilia_kit.wire.auth import Audience
from fastapi import FastAPI
from web3 import Web3

from concilia_chain import api, contract_file, deployment, fees, providers
from concilia_chain.announcing import Announcer
from concilia_chain.answers import Answers
from concilia_chain.calls import Call
from concilia_chain.commitments import Commitments
from concilia_chain.door import Door
from concilia_chain.errors import ChainUnavailable, StartError
from concilia_chain.events import Event
from concilia_chain.expectations import Expectations
from concilia_chain.follower import Follower
from concilia_chain.gateway import Gateway
from concilia_chain.lease import Lease, LeaseHeld
from concilia_chain.ledger import LedgerContract
from concilia_chain.metrics import ChainMetrics, watch
from concilia_chain.outbox import Outbox
from concilia_chain.reading import Reading
from concilia_chain.refusals import RefusalReader
from concilia_chain.relay import Mined, Relay
from concilia_chain.sender import Pace, Sender
from concilia_chain.service import ChainService
from concilia_chain.settings import ChainSettings
from concilia_chain.signatures import Signatures
from concilia_chain.store import Store

KEYS_PATH = "/.well-known/jwks.json"
MIGRATIONS = Path(__file__).with_name("migrations")
VALIDATOR = Path(__file__).with_name("UniversalSignatureValidator.json")


def build(settings: ChainSettings, client: Web3 | None = None) -> FastAPI:
    """The service, attached to its ledger, which is deployed where there is none.

    `client` is a connection to use in place of `rpc_url`'s. Raises `StartError`, `KeystoreError`, `ChainUnavailable`,
    `sqlalchemy.exc.SQLAlchemyError`.
    """
    contract = contract_file.read(settings.contract_file)
    account = keystore.load(settings.keystore, settings.password_file)
    client = client or providers.connect(settings.rpc_url, funded=[account.address])
    engine = database.engine(settings.database_url)
    database.migrate(engine, MIGRATIONS)

    def open_at(address: str) -> LedgerContract:
        return LedgerContract(client, address, contract.abi, caller=account.address)

    patient = _patient(settings.start_seconds)
    chain = patient(deployment.chain_id, client, settings.chain_id)
    confirmations = deployment.confirmations(client, settings.confirmations)
    refusals = RefusalReader(contract.abi)
    relay = Relay(client, account, chain, refusals, int(settings.max_fee_gwei * fees.GWEI))
    lease = Lease(engine, f"{chain}:{relay.address}", settings.lease_seconds)

    def deploy() -> Mined:
        call = deployment.creation_call(client, contract, settings.admin_address, relay.address)
        return deployment.deploy(relay, call, lease.hold, settings.receipt_seconds)

    _take(lease, settings.lease_seconds)
    try:
        if settings.contract_address is not None:
            known = deployment.attach(engine, chain, settings.contract_address, open_at)
        else:
            known = deployment.find_or_deploy(engine, chain, open_at, deploy)
    except BaseException:
        lease.release()  # whoever starts next, with better settings, need not wait
        raise

    ledger = open_at(known.address)
    store = Store(engine, known)
    stream = redis.Redis.from_url(settings.redis_url)
    follower = Follower(ledger, store, stream, settings.poll_seconds)
    auth = http.client(settings.auth_url)
    registry = metrics.registry()
    watch(registry, follower.standing)
    measured = ChainMetrics(registry)
    outbox = Outbox(engine, known.id, lease)
    answers = Answers()

    def effect_of(call: Call) -> Event | None:
        follower.catch_up_surely()
        return store.effect_of(call)

    expectations = Expectations(lambda job, number: reading.recorded(job, number), lambda: reading.hospitals())
    pace = Pace(confirmations, settings.bump_seconds, settings.coalesce_seconds, settings.batch_updates)
    sender = Sender(outbox, relay, ledger, answers, follower.catch_up, effect_of, expectations.missing, pace, measured)
    gateway = Gateway(outbox, sender, relay, answers, lease, settings.poll_seconds, measured)
    domain = Domain(chain_id=chain, contract=known.address)

    announcer = Announcer(stream, lambda job, number: commitments.count(job, number))
    commitments = Commitments(
        engine,
        known.id,
        ledger,
        domain,
        lambda job, number: reading.rounds.of(job, number),
        lambda address: Role.HOSPITAL in reading.held(address),
        announcer.tell,
    )
    reading = Reading(ledger, follower, store, outbox, commitments, confirmations)

    def fetch_keys() -> dict[str, Any]:
        keys: dict[str, Any] = http.call(auth, "GET", KEYS_PATH, retry_seconds=2.0).json()
        return keys

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        gateway.start()
        announcer.start()
        yield
        announcer.stop()
        gateway.stop()
        follower.stop()
        stream.close()
        auth.close()
        engine.dispose()

    app = web.application(
        "Concilia chain",
        ready={
            "rpc": ledger.head,
            "database": lambda: database.answer(engine),
            "redis": stream.ping,
            "follower": follower.check,
            "gateway": gateway.check,
        },
        verifier=TokenVerifier(
            Audience.CHAIN,
            fetch_keys,
            standing=lambda address, _: reading.held(address),
            at_once=lambda address, _: reading.held_at_once(address),
            ended=SessionsEnded(auth),
        ),
        lifespan=lifespan,
        registry=registry,
    )
    app.state.reading = reading
    app.state.service = ChainService(ledger, gateway, relay, reading, commitments, expectations)
    app.state.patience = settings.receipt_seconds
    app.state.door = Door(providers.node(client), chain, providers.ANSWER_SECONDS)
    app.state.signatures = Signatures(providers.node(client), contract_file.read(VALIDATOR).bytecode)
    app.include_router(api.router)
    return app


def _take(lease: Lease, seconds: float) -> None:
    """Take the relay's lease; a process that died holds it for as long as it runs. Raises `StartError`."""
    deadline = time.monotonic() + seconds + 1
    while True:
        try:
            return lease.hold()
        except LeaseHeld as held:
            if time.monotonic() > deadline:
                raise StartError(
                    f"another chain service sends from this relay's key ({held}): there may be one only, stop it first"
                ) from None
            time.sleep(0.2)


def _patient(seconds: float) -> tenacity.Retrying:
    """Asks again while the node is not up yet: containers start in any order."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ChainUnavailable),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    )
