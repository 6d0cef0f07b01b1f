"""An EVM within this process that behaves like a node: at the Shanghai fork, as Ganache is, and as long as the process.

It is read only where it is used: py-evm is as large as the rest of this service.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from eth.abc import BlockHeaderAPI
from eth.exceptions import HeaderNotFound
from eth.vm.forks.shanghai import ShanghaiVM
from eth.vm.spoof import SpoofTransaction
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import BlockNotFound, TransactionFailed, TransactionNotFound
from eth_tester.exceptions import ValidationError as TesterValidationError
from eth_utils.address import to_canonical_address
from eth_utils.exceptions import ValidationError
from web3.exceptions import OffchainLookup
from web3.providers.eth_tester import EthereumTesterProvider
from web3.providers.eth_tester.middleware import ethereum_tester_middleware
from web3.types import RPCEndpoint, RPCResponse

_WEALTH = 10**30  # wei
_NAMES = {"y_parity": "yParity"}  # that web3's middleware leaves as the tester has them
_FEES = {"gas_price", "max_fee_per_gas", "max_priority_fee_per_gas"}


def provider(funded: Iterable[str]) -> InProcessProvider:
    """A chain of its own, on which the addresses `funded` own ether from the first block."""
    return InProcessProvider(EthereumTester(WallClockBackend(funded)))


class WallClockVM(ShanghaiVM):
    """Shanghai, except that blocks of one second may share its timestamp.

    Ethereum wants each block at least a second later than its parent. With a block for each transaction the chain's
    clock would run ahead of the wall clock under load, and deadlines would pass early.
    """

    @classmethod
    def validate_header(cls, header: BlockHeaderAPI, parent_header: BlockHeaderAPI) -> None:
        """Raise `ValidationError` for a header that does not follow its parent."""
        super().validate_header(header, parent_header.copy(timestamp=parent_header.timestamp - 1))


class WallClockBackend(PyEVMBackend):  # type: ignore[misc]  # eth-tester is untyped
    """py-evm with blocks stamped when they are made.

    py-evm stamps a block when its parent is made, which after a quiet hour is an hour ago, and dry runs see the time
    of the last block; both would let an update in after its deadline.
    """

    def __init__(self, funded: Iterable[str]) -> None:
        account = {"balance": _WEALTH, "nonce": 0, "code": b"", "storage": {}}
        super().__init__(
            vm_configuration=((0, WallClockVM),),
            genesis_state={to_canonical_address(address): account for address in funded},
        )

    def _stamp(self) -> None:
        parent = self.chain.get_canonical_head()
        self.chain.set_header_timestamp(max(parent.timestamp, int(time.time())))

    def send_raw_transaction(self, raw_transaction: bytes) -> Any:
        """Run a transaction in a block of now."""
        self._stamp()
        return super().send_raw_transaction(raw_transaction)

    def call(self, transaction: Any, block_number: Any = "latest") -> Any:
        """Run a call, on the newest state as if in a block of now; it costs nothing, and so needs no ether."""
        header = self._header(block_number)
        call = {"gas": header.gas_limit, **_free(transaction)}
        unsigned = self._get_normalized_and_unsigned_evm_transaction(call, "latest")
        # The machine is made for this call, and what the call changed goes with it.
        machine = self.chain.get_vm(header.copy(base_fee_per_gas=0))
        computation = machine.state.apply_transaction(SpoofTransaction(unsigned, from_=transaction["from"]))
        if computation.is_error:
            raise TransactionFailed(str(computation.error))
        return computation.output

    def _header(self, block_number: Any) -> BlockHeaderAPI:
        if isinstance(block_number, str) and block_number != "earliest":
            self._stamp()
            header: BlockHeaderAPI = self.chain.header
            return header
        number = 0 if block_number == "earliest" else block_number
        try:
            header = self.chain.get_canonical_block_header_by_number(number)
        except HeaderNotFound as error:
            raise BlockNotFound(f"no block {number}") from error
        return header

    def estimate_gas(self, transaction: Any, block_number: Any = "latest") -> Any:
        """Gas that suffices in a block of now: what a free run used, with a little on top.

        One run in place of py-evm's search with fifteen; tried once more where another contract was called, which may
        behave by the gas it has, and searched for where that fails.
        """
        self._stamp()
        transaction = _free(transaction)
        unsigned = self._get_normalized_and_unsigned_evm_transaction({**transaction, "gas": 21_000}, "latest")
        header = self.chain.header

        def run(gas: int) -> Any:
            attempt = SpoofTransaction(unsigned, from_=transaction["from"], gas=gas, gas_price=0)
            with self.chain.get_vm(header).in_costless_state() as state:
                return state.apply_transaction(attempt)

        free = run(header.gas_limit)
        if free.is_error:
            raise TransactionFailed(str(free.error))
        enough = (header.gas_limit - free.get_gas_remaining()) * 65 // 64
        if not any(child.msg.code for child in free.children) or not run(enough).is_error:
            return enough
        return super().estimate_gas(transaction, block_number)


class InProcessProvider(EthereumTesterProvider):
    """An EVM within this process, for many threads, that reports errors as a node does (JSON-RPC 2.0, EIP-1474)."""

    def __init__(self, tester: EthereumTester) -> None:
        super().__init__(tester)
        self._lock = threading.Lock()
        # The middleware that turns a node's forms into the tester's and back; it looks at no client.
        formatting: Any = ethereum_tester_middleware
        self._formatted = formatting(None).wrap_make_request(self.make_request)

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """One call, one at a time: py-evm is made for one thread."""
        with self._lock:
            try:
                return super().make_request(method, params)
            except OffchainLookup:
                raise
            except TransactionFailed as error:
                return _error(3, "execution reverted", "0x" + _revert_data(str(error.args[0])).hex())
            except (ValidationError, TesterValidationError) as error:
                return _error(-32000, str(error))

    def ask(self, method: str, params: list[Any], seconds: float) -> dict[str, Any]:  # noqa: ARG002
        """One question and its answer in the forms of JSON-RPC; the tester is never long about one."""
        try:
            answer = self._formatted(RPCEndpoint(method), params)
        except (BlockNotFound, TransactionNotFound) as error:
            answer = _error(-32000, str(error))
        return {name: _as_json(value, raw={"code", "gasUsedRatio"}) for name, value in answer.items()}


def _free(transaction: Any) -> dict[str, Any]:
    """A call without fees, as nodes run calls: whoever asks need not own ether."""
    return {**{name: value for name, value in transaction.items() if name not in _FEES}, "gas_price": 0}


def _as_json(value: Any, raw: Collection[str] = (), name: str = "") -> Any:
    """A tester's value as a node writes it: numbers and bytes in hexadecimal, except under the names in `raw`."""
    if isinstance(value, Mapping):
        return {_NAMES.get(key, key): _as_json(each, raw, key) for key, each in value.items() if key != "state_root"}
    if isinstance(value, (list, tuple)):
        return [_as_json(each, raw, name) for each in value]
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, int) and not isinstance(value, bool) and name not in raw:
        return f"0x{value:0512x}" if name == "logsBloom" else hex(value)
    return value


def _revert_data(message: str) -> bytes:
    # The tester passes revert data on as the text of a bytes literal.
    _, _, text = message.partition("execution reverted: ")
    try:
        data = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return b""
    return data if isinstance(data, bytes) else b""


def _error(code: int, message: str, data: str | None = None) -> RPCResponse:
    body: dict[str, Any] = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return {"jsonrpc": "2.0", "id": 0, "error": body}  # type: ignore[typeddict-item]
