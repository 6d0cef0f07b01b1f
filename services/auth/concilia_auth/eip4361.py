"""Sign-In with Ethereum messages: built, parsed and verified. No clock, no network, no storage.

The rules of `verify`, in the order in which they apply:

1. the message is not dated in the future,
2. it is for this domain (and, where it names a scheme, for this site's),
3. it carries the nonce at hand,
4. it names this site's URI and chain,
5. it is neither expired nor before its own "Not Before",
6. the address in it signed it with its own key (EIP-191, `personal_sign`). Whether it is a contract wallet's that
   accepts the signature is asked elsewhere, where all else is right.

Source: EIP-4361; its grammar as the `siwe` module implements it, in strict mode. An address must carry its EIP-55
checksum, as the standard has it (the module only warns). Two rules are ours: the first above, and that the text must be
the one spelling that its content has, so that what was signed is what was read.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import siwe
from eth_account.messages import defunct_hash_message
from eth_utils.address import is_checksum_address

from concilia_auth import errors

MAX_MESSAGE = 1024
"""Characters. The grammar's parser takes quadratic time: 4 KiB of one long name were seen to cost four seconds."""

SKEW = timedelta(seconds=60)
"""By how much the clock may be ahead that dated a message: a client may date its own."""
_NONCE_LETTERS = string.ascii_letters + string.digits
_ADDRESS = re.compile(r"^0x[0-9a-fA-F]{40}$", re.MULTILINE)
_NONCE = re.compile(r"^Nonce: ([a-zA-Z0-9]{8,64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Site:
    """What people sign in to: authority, address of the page, and the line that their wallet shows."""

    domain: str
    uri: str
    statement: str


def new_nonce() -> str:
    """Letters and digits that nobody guesses: 131 bits (EIP-4361 asks for eight characters or more)."""
    return "".join(secrets.choice(_NONCE_LETTERS) for _ in range(22))


def build(site: Site, *, address: str, chain_id: int, nonce: str, issued_at: datetime, expires_at: datetime) -> str:
    """The text to sign. Times are aware; `address` has its EIP-55 checksum. Raises `ValueError` for a site whose
    domain, URI or statement does not fit the grammar."""
    message = siwe.SiweMessage(
        domain=site.domain,
        address=address,
        statement=site.statement,
        uri=site.uri,
        version="1",
        chain_id=chain_id,
        nonce=nonce,
        issued_at=siwe.ISO8601Datetime.from_datetime(issued_at),
        expiration_time=siwe.ISO8601Datetime.from_datetime(expires_at),
    )
    return str(message.prepare_message())


def nonce_of(text: str) -> str:
    """The nonce that a text claims to carry, found without parsing it. Raises `MessageMalformed`."""
    if len(text) > MAX_MESSAGE:
        raise errors.MessageMalformed(f"a sign-in message has at most {MAX_MESSAGE} characters")
    found = _NONCE.search(text)
    if found is None:
        raise errors.MessageMalformed("the message has no line 'Nonce: …' of 8 to 64 letters and digits")
    return found[1]


def claimed_address(text: str) -> str | None:
    """The address that a text claims to be of, found without parsing it; None where it is in no line of its own."""
    found = _ADDRESS.search(text[:MAX_MESSAGE])
    return None if found is None else found[0]


def parse(text: str) -> siwe.SiweMessage:
    """The message. Raises `MessageMalformed`."""
    if len(text) > MAX_MESSAGE:
        raise errors.MessageMalformed(f"a sign-in message has at most {MAX_MESSAGE} characters")
    try:
        message = siwe.SiweMessage.from_message(text, abnf=True)
    except (ValueError, RecursionError) as error:
        raise errors.MessageMalformed("this is no EIP-4361 message") from error
    if not is_checksum_address(message.address):
        raise errors.MessageMalformed("the address in the message lacks its EIP-55 checksum")
    if message.prepare_message() != text:
        raise errors.MessageMalformed("the message is not spelt as EIP-4361 spells it")
    return message


def digest(text: str) -> bytes:
    """The 32 bytes that `personal_sign` signs for a text, and that a contract wallet is asked about (EIP-191)."""
    return bytes(defunct_hash_message(text=text))


def verify(
    message: siwe.SiweMessage,
    signature: str,
    site: Site,
    *,
    chain_id: int,
    nonce: str,
    now: datetime,
    skew: timedelta | None = SKEW,
) -> None:
    """Check a parsed message and its signature (0x-prefixed hexadecimal). Without a `skew` a message may be dated in
    the future: the standard does not forbid it.

    Raises `DomainMismatch`, `NonceUnknown`, `UriMismatch`, `ChainMismatch`, `MessageExpired`, `MessageNotYetValid`
    or `SignatureInvalid`, the last only where everything else is right.
    """
    if skew is not None and datetime.fromisoformat(message.issued_at) > now + skew:
        raise errors.MessageNotYetValid("the message is dated in the future; is the clock that dated it right?")
    try:
        message.verify(
            signature,
            scheme=urlsplit(site.uri).scheme if message.scheme is not None else None,
            domain=site.domain,
            nonce=nonce,
            uri=site.uri,
            chain_id=chain_id,
            timestamp=now,
            strict=True,
        )
    except (siwe.SchemeMismatch, siwe.DomainMismatch) as error:
        raise errors.DomainMismatch(f"the message was signed for another site than {site.domain}") from error
    except siwe.NonceMismatch as error:
        raise errors.NonceUnknown("the message carries another nonce than it seems to") from error
    except siwe.UriMismatch as error:
        raise errors.UriMismatch(f"the message was signed for another address than {site.uri}") from error
    except siwe.ChainIdMismatch as error:
        raise errors.ChainMismatch(f"the message was signed for another chain than {chain_id}") from error
    except siwe.ExpiredMessage as error:
        raise errors.MessageExpired("the message has expired; ask for a new challenge") from error
    except siwe.NotYetValidMessage as error:
        raise errors.MessageNotYetValid("the message is not valid yet") from error
    except siwe.VerificationError as error:
        raise errors.SignatureInvalid("the address in the message did not sign it") from error
