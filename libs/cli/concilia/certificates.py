"""A small certificate authority: one that signs a deployment's own servers, for development and private networks.

Keys are of P-256, an authority lives ten years and a server's certificate 397 days, as browsers want it. What it signed
it signs again when the time comes, or when the server is to have other names; certificates of others are left alone.

Source: RFC 5280; CA/Browser Forum Baseline Requirements, 6.3.2 (lifetimes) and 7.1 (profiles).
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3652)
SERVER_LIFE = timedelta(days=397)
RENEWAL = timedelta(days=30)
"""How long before a server's certificate ends it is made anew."""
AUTHORITY = "ca"
"""Name of the authority's files: `ca.pem`, which clients are given, and `ca.key`, which nobody is."""

_BACKDATED = timedelta(hours=1)  # clocks differ
_DNS = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_OPEN, _CLOSED = 0o444, 0o400


class CertificateError(ValueError):
    """Files that are no certificate or key, or do not belong together."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Made:
    """A file of certificates that was written, the day it ends, and whether another was there before."""

    name: str
    until: datetime
    is_renewed: bool


def authority(now: datetime) -> Signed:
    """A new authority, which may sign servers and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Concilia"),
            # Two deployments' authorities have different names: clients find the right one by it.
            x509.NameAttribute(NameOID.COMMON_NAME, f"Concilia deployment {secrets.token_hex(4)}"),
        ]
    )
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return Signed(builder.sign(key, hashes.SHA256()), key)


def server(by: Signed, hosts: Sequence[str], now: datetime) -> Signed:
    """A new certificate for a server with these names and addresses. Raises `CertificateError`."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = by.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(x509.Name([]), by.certificate.subject, key.public_key(), now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=True)  # there is no subject
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )
    return Signed(builder.sign(by.key, hashes.SHA256()), key)


def is_due(found: x509.Certificate, by: x509.Certificate, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a server's certificate is to be made anew: the authority signed it, and it ends soon or lacks a name."""
    try:
        found.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return now + RENEWAL > found.not_valid_after_utc or not set(_names(hosts)) <= set(known)


def keep(folder: Path, servers: Mapping[str, Sequence[str]], now: datetime) -> list[Made]:
    """See to it that a folder has an authority and a certificate for each server; what was written.

    `servers`: hosts by the name of the files, `name.pem` and `name.key`. What is there and not due is not touched, nor
    is what another authority signed. Raises `CertificateError`, `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if not (folder / f"{AUTHORITY}.pem").exists():
        made.append(_write(folder, AUTHORITY, authority(now), _CLOSED))
    for name, hosts in servers.items():
        certificate = folder / f"{name}.pem"
        if certificate.exists() and not is_due(_read(certificate), _read(folder / f"{AUTHORITY}.pem"), hosts, now):
            continue
        made.append(_write(folder, name, server(_signer(folder), hosts, now), _OPEN))
    return made


def _signer(folder: Path) -> Signed:
    certificate, path = _read(folder / f"{AUTHORITY}.pem"), folder / f"{AUTHORITY}.key"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as error:
        raise CertificateError(f"{path} is missing: bring certificates of your authority, or its key") from error
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} is no private key in PEM without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateError(f"{path} is not the key of {AUTHORITY}.pem")
    return Signed(certificate, key)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise CertificateError(f"{path} is no certificate in PEM") from error


def _write(folder: Path, name: str, signed: Signed, key_mode: int) -> Made:
    certificate = folder / f"{name}.pem"
    is_renewed = certificate.exists()
    key = signed.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # The key first: a certificate says that both are there. One who is stopped between the two leaves a pair that does
    # not fit, which `is_due` cannot see; so the old certificate goes away before.
    certificate.unlink(missing_ok=True)
    _put(folder / f"{name}.key", key, key_mode)
    _put(certificate, signed.certificate.public_bytes(Encoding.PEM), _OPEN)
    return Made(certificate.name, signed.certificate.not_valid_after_utc, is_renewed)


def _put(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)  # whatever the umask says
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise CertificateError("a server needs a name")
    return [_name(host) for host in hosts]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise CertificateError(f"'{host}' is no name of a server") from error
    if not _DNS.fullmatch(name):
        raise CertificateError(f"'{host}' is no name of a server")
    return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
