"""A wallet as MetaMask behaves towards a page; its keys and its mind are here, its face in the page is wallet.js.

What a person does in the wallet is a method here. Sources: EIP-1193 (requests, events, errors), EIP-6963 (discovery),
EIP-191 (`personal_sign`), EIP-712 (`eth_signTypedData_v4`), EIP-3326 and EIP-3085 (switching and adding networks), and
MetaMask's own refusals: typed data for another network than the active one, an added network whose address answers with
another chain id, a question of a kind that already waits for an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from eth_account.messages import SignableMessage, encode_defunct, encode_typed_data
from eth_account.signers.local import LocalAccount

BINDING = "__walletRequest"
EMIT = "__walletEmit"
METAMASK = ("MetaMask", "io.metamask")
OLD = ("Old wallet", "window.ethereum")
"""A wallet that announces nothing and only sets `window.ethereum`."""

_ASKS_THE_PERSON = frozenset(
    {"eth_requestAccounts", "personal_sign", "eth_signTypedData_v4"}
    | {"wallet_switchEthereumChain", "wallet_addEthereumChain"}
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Refused(Exception):
    """An error as EIP-1193 spells it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.document = {"code": code, "message": message}


class Silence(Exception):
    """The wallet never answers."""


@dataclass(frozen=True)
class Asked:
    """A request of a page, and the wallet (by its reverse domain name) that it asked."""

    method: str
    params: list[Any]
    rdns: str


class Wallet:
    """One person's key in whichever wallets their browser has. Answers at once where nothing else was said."""

    def __init__(self, key: LocalAccount, chain: int, *, names: Sequence[tuple[str, str]] = (METAMASK,)) -> None:
        self.key = key
        self.chain = chain
        self.names = names
        self.known = {chain}
        self.added: dict[int, dict[str, Any]] = {}
        """What a page said of the networks it had added, by chain id."""
        self.asked: list[Asked] = []
        """Every request so far."""
        self.tell: Callable[[str, Any], None] = lambda event, value: None
        """How an event reaches the pages that are open."""
        self._connected = False
        self._locked = False
        self._signer: LocalAccount | None = None
        self._next: list[tuple[str | None, Refused | Silence]] = []
        self._waiting: set[str] = set()
        self._events: list[tuple[str, Any]] | None = None

    @property
    def face(self) -> str:
        """The script that puts the wallet into a page, to run before the page's own."""
        script = Path(__file__).with_name("wallet.js").read_text()
        return script.replace("NAMES", json.dumps(list(self.names)))

    # ------------------------------------------------------------------------------------------ what a person does

    def choose(self, key: LocalAccount) -> None:
        """Choose another account."""
        self.key = key
        self._show_account()

    def switch(self, chain: int) -> None:
        """Choose another network; the wallet knows it from now on."""
        self.known.add(chain)
        self.chain = chain
        self._emit("chainChanged", hex(chain))

    def refuse(self, method: str | None = None, code: int = 4001, message: str = "User rejected the request.") -> None:
        """Decline the next question (the next of one kind, where a method is named)."""
        self._next.append((method, Refused(code, message)))

    def ignore(self, method: str | None = None) -> None:
        """Never answer the next question (the next of one kind, where a method is named)."""
        self._next.append((method, Silence()))

    def lock(self) -> None:
        """Lock the wallet."""
        self._locked = True
        self._show_account()

    def unlock(self) -> None:
        """Unlock it again."""
        self._locked = False
        self._show_account()

    def connect(self) -> None:
        """Let the site see the account, as it was allowed to some other day."""
        self._connected = True

    def disconnect(self) -> None:
        """Take back that the site may see accounts."""
        self._connected = False
        self._emit("accountsChanged", [])

    def sign_as(self, key: LocalAccount | None) -> None:
        """Sign with another key than that of the account shown (None: honestly again)."""
        self._signer = key

    def requests(self, method: str) -> list[Asked]:
        """Requests of one kind so far."""
        return [asked for asked in self.asked if asked.method == method]

    # ------------------------------------------------------------------------------------------- what a page sees

    def answer(self, rdns: str, method: str, params: list[Any]) -> dict[str, Any]:
        """What comes of a request, for wallet.js: `result`, `error` or `silence`, and `events` told before it."""
        self.asked.append(Asked(method, params, rdns))
        events: list[tuple[str, Any]] = []
        self._events = events
        try:
            outcome: dict[str, Any] = {"result": self._answer(method, params)}
        except Refused as refused:
            outcome = {"error": refused.document}
        except Silence:
            outcome = {"silence": True}
        finally:
            self._events = None
        return {**outcome, "events": [list(event) for event in events]}

    def _answer(self, method: str, params: list[Any]) -> Any:
        if method in self._waiting:
            raise Refused(-32002, f"Request of type '{method}' already pending. Please wait.")
        self._think(method)
        answers: dict[str, Callable[[list[Any]], Any]] = {
            "eth_requestAccounts": self._connect,
            "eth_accounts": lambda _: self._accounts(),
            "eth_chainId": lambda _: hex(self.chain),
            "personal_sign": self._sign_text,
            "eth_signTypedData_v4": self._sign_typed,
            "wallet_switchEthereumChain": self._switch_to,
            "wallet_addEthereumChain": self._add_chain,
        }
        if method not in answers:
            raise Refused(4200, f'The Provider does not support the requested method "{method}".')
        return answers[method](params)

    def _think(self, method: str) -> None:
        """Raise what the person has in mind for a question of this kind."""
        if method not in _ASKS_THE_PERSON:
            return
        for at, (meant, outcome) in enumerate(self._next):
            if meant in (None, method):
                del self._next[at]
                if isinstance(outcome, Silence):
                    self._waiting.add(method)
                raise outcome

    def _accounts(self) -> list[str]:
        return [self.key.address.lower()] if self._connected and not self._locked else []

    def _connect(self, _: list[Any]) -> list[str]:
        if self._locked:
            raise Refused(4100, "The wallet is locked.")
        if not self._connected:
            self._connected = True
            self._emit("connect", {"chainId": hex(self.chain)})
            self._show_account()
        return self._accounts()

    def _sign_text(self, params: list[Any]) -> str:
        text, address = params
        return self._signed(encode_defunct(hexstr=text), address)

    def _sign_typed(self, params: list[Any]) -> str:
        address, document = params
        typed = json.loads(document)
        named = int(typed["domain"]["chainId"])
        if named != self.chain:
            raise Refused(-32603, f'Provided chainId "{named}" must match the active chainId "{self.chain}"')
        return self._signed(encode_typed_data(full_message=typed), address)

    def _signed(self, message: SignableMessage, address: str) -> str:
        if address.lower() not in self._accounts():
            raise Refused(4100, "The requested account and/or method has not been authorized by the user.")
        signature = (self._signer or self.key).sign_message(message).signature
        return "0x" + signature.hex().removeprefix("0x")

    def _switch_to(self, params: list[Any]) -> None:
        chain = _chain_id(params[0])
        if chain not in self.known:
            raise Refused(
                4902, f'Unrecognized chain ID "{hex(chain)}". Try adding the chain using wallet_addEthereumChain'
            )
        if chain != self.chain:
            self.switch(chain)

    def _add_chain(self, params: list[Any]) -> None:
        chain, url = _chain_id(params[0]), _rpc_url(params[0])
        currency = params[0].get("nativeCurrency") or {}
        if not params[0].get("chainName") or currency.get("decimals") != 18:
            raise Refused(-32602, "Expected a 'chainName' and a 'nativeCurrency' of 18 decimals.")
        if not 1 <= len(currency.get("symbol", "")) <= 6:
            raise Refused(-32602, "Expected a 'nativeCurrency.symbol' of 1 to 6 characters.")
        if (answered := _asked_chain_id(url)) != chain:
            raise Refused(-32602, f"Chain ID returned by RPC URL {url} does not match {hex(chain)}: {hex(answered)}")
        self.added[chain] = params[0]
        self.switch(chain)

    def _show_account(self) -> None:
        if self._connected:
            self._emit("accountsChanged", self._accounts())

    def _emit(self, event: str, value: Any) -> None:
        """Tell the pages: with the answer, where one is being made."""
        if self._events is None:
            self.tell(event, value)
        else:
            self._events.append((event, value))


def _chain_id(request: dict[str, Any]) -> int:
    text = str(request.get("chainId"))
    try:
        number = int(text, 16)
    except ValueError:
        number = 0
    if number == 0 or text != hex(number):
        raise Refused(
            -32602, f"Expected 0x-prefixed, unpadded, non-zero hexadecimal string 'chainId'. Received: {text}"
        )
    return number


def _rpc_url(request: dict[str, Any]) -> str:
    for url in request.get("rpcUrls") or []:
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            return str(url)
    raise Refused(-32602, "Expected an array with at least one valid string HTTPS url 'rpcUrls'.")


def _asked_chain_id(url: str) -> int:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    try:
        answer = httpx.post(url, json=asked, timeout=10)
        return int(answer.raise_for_status().json()["result"], 16)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Refused(-32602, f"Request for method 'eth_chainId' on {url} failed: {error}") from error
