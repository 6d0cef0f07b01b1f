"""The inventory of cryptography has every algorithm that the code names, and what it names is there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cryptography.md"
SOURCES = sorted(
    path
    for folder in ("libs", "services")
    for path in (ROOT / folder).rglob("*.py")
    if not {"build", "node_modules", ".venv"} & set(path.parts)
)
PRIMITIVES = "cryptography.hazmat.primitives"

# A name of the code, and the inventory's word for it.
WORDS = {
    "sha256": "SHA-256",
    "SHA256": "SHA-256",
    "hmac": "HMAC-SHA256",
    "keccak": "Keccak-256",
    "EdDSA": "Ed25519",
    "Ed25519PrivateKey": "Ed25519",
    "Ed25519PublicKey": "Ed25519",
    "ed25519": "Ed25519",
    "ec": "P-256",
    "SECP256R1": "P-256",
    "ECDSA": "P-256",
    "AES": "AES-256",
    "CTR": "counter mode",
    "HKDF": "HKDF-SHA256",
    "HKDFExpand": "HKDF-SHA256",
    "X25519PrivateKey": "X25519",
    "X25519PublicKey": "X25519",
    "ChaCha20Poly1305": "ChaCha20-Poly1305",
}
NO_ALGORITHM = {"algorithms", "modes", "hashes", "Cipher", "CipherContext", "serialization"}


def names(tree: ast.AST) -> Iterator[str]:
    """What a module takes from `hashlib`, `hmac`, `cryptography`'s primitives, Ethereum's hash; a token's algorithm."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from imported(node.module or "", [each.name for each in node.names])
        elif isinstance(node, ast.Import):
            yield from ("hmac" for each in node.names if each.name == "hmac")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_one(node.value.id, node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "hashlib.file_digest":
            yield ast.literal_eval(node.args[1])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALGORITHM":
            yield ast.literal_eval(node.value)


def imported(module: str, taken: list[str]) -> list[str]:
    if module.startswith(PRIMITIVES) and "serialization" not in module:
        return [name for name in taken if name not in NO_ALGORITHM]
    if module in {"hashlib", "hmac", "Crypto.Hash", "Crypto.Cipher"}:
        return taken
    return [name for name in taken if name == "keccak"]


def is_one(of: str, name: str) -> bool:
    if of == "hashlib":
        return name not in {"file_digest", "_Hash"}
    return of in {"algorithms", "modes", "hashes", "ec"} and name[0].isupper() and not name.endswith("Key")


def used() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for name in names(ast.parse(path.read_text())):
            found[name].add(str(path.relative_to(ROOT)))
    return found


def test_every_algorithm_of_the_code_is_in_the_inventory() -> None:
    found = used()
    assert {"sha256", "hmac", "keccak", "EdDSA", "Ed25519PrivateKey"} <= set(found), "nothing was looked at"
    table = PAGE.read_text().partition("## Algorithms")[2].partition("\n## ")[0]
    assert {name: where for name, where in found.items() if name not in WORDS} == {}
    assert {name: where for name, where in found.items() if WORDS[name] not in table} == {}


def test_what_is_no_good_is_found() -> None:
    text = "import hashlib\nfrom cryptography.hazmat.primitives.ciphers import algorithms, modes\n"
    text += "hashlib.md5(b'')\nmodes.ECB()\nalgorithms.TripleDES(b'')\nhashlib.file_digest(file, 'sha1')\n"
    assert {"md5", "ECB", "TripleDES", "sha1"} <= set(names(ast.parse(text))) - set(WORDS)


def test_files_and_pages_that_the_inventory_names_exist() -> None:
    text = PAGE.read_text()
    paths = re.findall(r"`((?:libs|services|deploy|tests)/[^`*]+)`", text)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
