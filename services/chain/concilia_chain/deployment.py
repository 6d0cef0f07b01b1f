"""Which ledger this service writes to: the one it is told, the one it deployed before, or a new one."""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa
from concilia_kit import logs
from web3 import Web3

from concilia_chain import store
from concilia_chain.calls import Call
from concilia_chain.contract_file import ContractFile
from concilia_chain.errors import ChainUnavailable, ReceiptTimeout, StartError
from concilia_chain.ledger import LedgerContract, answered
from concilia_chain.relay import Answer, Mined, Relay
from concilia_chain.store import Cursor, Deployment

CONFIRMATIONS = 3
_DEVELOPMENT_NODES = ("ganache", "ethereumjs testrpc", "anvil", "hardhat", "eth-tester", "ethereumtester")
_POLL = 0.05  # seconds between questions for a receipt
_log = logs.get(__name__)

Open = Callable[[str], LedgerContract]


def chain_id(client: Web3, wanted: int) -> int:
    """The node's chain id. Raises `StartError` where it is not the one wanted (0: any)."""
    with answered():
        found = int(client.eth.chain_id)
    if wanted not in (0, found):
        raise StartError(
            f"the node is on chain {found}, not {wanted}: set CONCILIA_CHAIN_RPC_URL or CONCILIA_CHAIN_CHAIN_ID right"
        )
    return found


def confirmations(client: Web3, wanted: int | None) -> int:
    """How many blocks on top make a transaction final: as wanted, else by the kind of node.

    Development nodes make a block for a transaction and none without, and never take one back: waiting for blocks on
    top would be waiting for ever.
    """
    if wanted is not None:
        return wanted
    with answered():
        version = str(client.client_version)
    return 0 if version.lower().startswith(_DEVELOPMENT_NODES) else CONFIRMATIONS


def attach(database: sa.Engine, chain: int, address: str, open_at: Open) -> Deployment:
    """The ledger at an address. Raises `StartError` where there is none."""
    ledger = open_at(address)
    if not ledger.code_exists():
        raise StartError(f"no contract at {address} on chain {chain}: check CONCILIA_CHAIN_CONTRACT_ADDRESS")
    if not ledger.domain_fits():
        raise StartError(f"the contract at {address} is no Concilia ledger: check CONCILIA_CHAIN_CONTRACT_ADDRESS")
    known = _living(store.deployments(database, chain, ledger.address), open_at)
    return known or _remember(database, chain, ledger, _creation_block(ledger))


def find_or_deploy(database: sa.Engine, chain: int, open_at: Open, deploy: Callable[[], Mined]) -> Deployment:
    """The newest ledger deployed before that is still there, else a new one made by `deploy`."""
    known = _living(store.deployments(database, chain), open_at)
    if known is not None:
        return known
    made = deploy()
    assert made.created is not None, "a mined creation has an address"
    _log.info("deployed", address=made.created, block=made.block, transaction=made.transaction)
    return _remember(database, chain, open_at(made.created), made.block)


def deploy(relay: Relay, call: Call, hold: Callable[[], None], seconds: float) -> Mined:
    """Deploy a ledger, and wait for its block. Raises `Refused`, `ReceiptTimeout`.

    A process that dies meanwhile leaves a ledger that nobody uses; the next deploys its own.
    """
    relay.dry_run(call)
    signed = relay.sign(call, relay.gas(call), relay.count(), relay.offer(relay.head()))
    answer, words = relay.broadcast(signed.raw)
    if answer is not Answer.TAKEN:
        raise ChainUnavailable(f"the node does not take the transaction: {words[:200]}")
    deadline = time.monotonic() + seconds
    while (mined := relay.mined(signed.transaction)) is None:
        if time.monotonic() > deadline:
            raise ReceiptTimeout(f"the ledger's creation is in no block after {seconds:g} s; start again")
        hold()
        time.sleep(_POLL)
    if not mined.good:
        relay.dry_run(call, mined.block)
        raise StartError("the ledger's creation was mined and reverted; see its transaction " + mined.transaction)
    return mined


def creation_call(client: Web3, contract: ContractFile, admin: str | None, coordinator: str) -> Call:
    """The call that deploys a ledger. Raises `StartError` where no administrator is named."""
    if admin is None:
        raise StartError("no ledger is known and none can be deployed: set CONCILIA_CHAIN_ADMIN_ADDRESS")
    factory = client.eth.contract(abi=contract.abi, bytecode=contract.bytecode)
    return Call(to=None, data=str(factory.constructor(admin, coordinator).data_in_transaction), function="deploy")


def _living(known: list[Deployment], open_at: Open) -> Deployment | None:
    """The first ledger that the chain still has, in the very block: a chain started anew repeats addresses."""
    for deployment in known:
        ledger = open_at(deployment.address)
        block = ledger.block(deployment.block)
        if block is not None and block.hash == deployment.block_hash and ledger.code_exists() and ledger.domain_fits():
            return deployment
    return None


def _remember(database: sa.Engine, chain: int, ledger: LedgerContract, number: int) -> Deployment:
    block = ledger.block(number)
    if block is None:
        raise StartError(f"the node lost block {number} while starting; start again")
    return store.remember(
        database, chain, ledger.address, block.number, block.hash, Cursor(block.number - 1, block.parent)
    )


def _creation_block(ledger: LedgerContract) -> int:
    """The first block with the contract's code, by bisection; the first block where the node keeps no old states."""
    low, high = 1, ledger.head()
    while low < high:
        middle = (low + high) // 2
        try:
            there = ledger.code_exists(middle)
        except ChainUnavailable:
            _log.warning("the node keeps no old states; following from the first block", address=ledger.address)
            return 1
        low, high = (low, middle) if there else (middle + 1, high)
    return low
