"""`python verifying.py TOKENS KEYS`: takes tokens at one auth service and verifies them with the keys of another.

Reads a session's token, then words, a line each: 'count' is answered with JSON, 'stop' ends it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from typing import Any

import jwt
from concilia_kit import http
from concilia_kit.http import call
from concilia_kit.problems import Problem, Unauthorized
from concilia_kit.tokens import ALGORITHM, TokenVerifier
from concilia_kit.wire.auth import Audience
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

THREADS = 3


def main(tokens_url: str, keys_url: str) -> None:
    session = sys.stdin.readline().strip()
    counted: Counter[str] = Counter(failed=0, forged=0, taken=0)
    lock, stopping = threading.Lock(), threading.Event()
    with http.client(tokens_url) as tokens, http.client(keys_url) as keys:

        def published() -> dict[str, Any]:
            document: dict[str, Any] = call(keys, "GET", "/.well-known/jwks.json", retry_seconds=2.0).json()
            return document

        verifier = TokenVerifier(Audience.MODEL, published)
        bearer = {"Authorization": f"Bearer {session}"}

        def count(what: str) -> None:
            with lock:
                counted[what] += 1

        def verify(kept: list[str]) -> None:
            token = call(tokens, "POST", "/v1/tokens", json={"audience": "model"}, headers=bearer).json()["token"]
            if not kept:
                kept.append(token)
            for each in (kept[0], token):  # the first one stays good as well
                verifier.verify(each)
            count(str(jwt.get_unverified_header(token)["kid"]))

        def work() -> None:
            forger, kept = Ed25519PrivateKey.generate(), list[str]()
            while not stopping.is_set():
                try:
                    verify(kept)
                except Problem:
                    count("failed")
                forged = jwt.encode({"sub": "x"}, forger, algorithm=ALGORITHM, headers={"kid": "forged"})
                try:
                    verifier.verify(forged)
                    count("taken")
                except Unauthorized:
                    count("forged")

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            with lock:
                print(json.dumps(counted), flush=True)
        stopping.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
