"""Sign-ins and tokens as they are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from concilia_auth import keys
from concilia_auth.errors import NonceUnknown, RateLimited, SignatureInvalid
from concilia_auth.limits import RateLimits
from concilia_auth.metrics import AuthMetrics
from concilia_auth.service import AuthService
from concilia_auth.settings import AuthSettings
from concilia_auth.store import Store
from concilia_kit.wire.auth import Audience
from eth_account import Account
from eth_account.signers.local import LocalAccount
from prometheus_client import CollectorRegistry


def test_auth_sign_ins_and_tokens_are_counted(
    settings: AuthSettings,
    store: Store,
    memory_roles: Any,
    memory_wallets: Any,
    redis_connection: redis.Redis,
    clock: Any,
    account: LocalAccount,
    sign: Callable[[LocalAccount, str], str],
) -> None:
    registry = CollectorRegistry()
    keys.ensure(settings.key_directory, clock())
    ring = keys.KeyRing(settings.key_directory)
    metrics = AuthMetrics(registry)
    service = AuthService(
        settings,
        store,
        ring,
        memory_roles,
        lambda: 1337,
        clock,
        wallets=memory_wallets,
        limits=RateLimits(redis_connection, 2, 0, metrics),
        metrics=metrics,
    )

    message = service.challenge(account.address).message
    session = service.sign_in(message, sign(account, message))
    with pytest.raises(NonceUnknown):
        service.sign_in(message, sign(account, message))
    message = service.challenge(account.address).message
    with pytest.raises(SignatureInvalid):
        service.sign_in(message, sign(Account.create(), message))
    with pytest.raises(RateLimited):
        service.challenge(account.address)
    for audience in (Audience.CHAIN, Audience.CHAIN, Audience.MODEL):
        service.access_token(session.token, audience)

    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert found == {
        ("concilia_sign_ins_total", "ok"): 1,
        ("concilia_sign_ins_total", "nonce_unknown"): 1,
        ("concilia_sign_ins_total", "signature_invalid"): 1,
        ("concilia_rate_limited_total", "challenge", "address"): 1,
        ("concilia_tokens_total", "chain"): 2,
        ("concilia_tokens_total", "model"): 1,
    }
