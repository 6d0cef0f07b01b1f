"""Identities of a stack: keys made on this machine, roles granted by the administrator's signature."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

from concilia_kit import keystore
from concilia_kit.roles import Role

from concilia.client import Client
from concilia.stack.layout import Layout

SIGNATURE_SECONDS = 600


def make_keys(layout: Layout, nodes: int) -> dict[str, str]:
    """Make a key for everybody, and one for the artifact store where it is sealed; returns addresses by name. Raises
    `KeystoreError`, `OSError`."""
    if layout.sealed and not layout.sealing_key.exists():
        layout.sealing_key.parent.mkdir(parents=True, exist_ok=True)
        layout.sealing_key.touch(mode=0o600)
        layout.sealing_key.write_text(secrets.token_hex(32) + "\n")
    people, services = ("admin", "clinician", "auditor"), ("chain", "aggregator", "model")
    names = [*people, *services, *(f"node-{index}" for index in range(nodes))]
    return {
        name: keystore.ensure(layout.keystore(name), layout.keystore(name).with_suffix(".password")).address
        for name in names
    }


def write_connection(layout: Layout) -> None:
    """Write the administrator's connection file."""
    document = {
        "auth_url": layout.url("auth"),
        "model_url": layout.url("model"),
        "chain_url": layout.url("chain"),
        "aggregator_url": layout.url("aggregator"),
        "keystore": "keys/admin.json",
        "password_file": "keys/admin.password",
    }
    layout.connection_file.write_text(json.dumps(document, indent=2) + "\n")


def enrol(admin: Client, addresses: dict[str, str]) -> None:
    """Grant everybody's role by the administrator's signature. Raises `Problem`."""
    grants: Sequence[tuple[str, Role]] = [
        ("aggregator", Role.COORDINATOR),
        ("model", Role.AUDITOR),
        ("clinician", Role.CLINICIAN),
        ("auditor", Role.AUDITOR),
        *((name, Role.HOSPITAL) for name in sorted(addresses) if name.startswith("node-")),
    ]
    deadline = int(time.time()) + SIGNATURE_SECONDS
    for name, role in grants:
        admin.change_role(role, addresses[name], granted=True, deadline=deadline)
