"""A sign-in message (EIP-4361), as whoever comes sends it; one that is accepted has one spelling."""

from __future__ import annotations

import random
import re

from concilia_auth import eip4361, errors

DECLARED = (errors.MessageMalformed,)
GROWTH = 64 * 2**20
_VALUES = (
    *("", "1", "2", "0", "-1", "1" * 80, "deadbeef", "a" * 64, "x" * 65),
    *("2026-01-01T00:00:00Z", "2026-01-01T00:00:00+25:00", "2026-02-30T00:00:00Z", "9999-12-31T23:59:60Z"),
    *(
        "0x" + "0" * 40,
        "0x" + "f" * 40,
        "https://a",
        "urn:x",
        "https://[::1",
        "javascript:alert(1)",
        "https://u:p@a/#?",
    ),
    *("\u0661", "\u2028", "%00", "a b", "\r"),
)


def run(data: bytes) -> None:
    """Find the nonce as the service does before it parses, then parse."""
    text = data.decode("utf-8", "ignore")  # the JSON around it was decoded before
    nonce = eip4361.nonce_of(text)
    message = eip4361.parse(text)
    assert message.prepare_message() == text
    assert message.nonce == nonce


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change a line as a whole, or what stands behind its colon."""
    lines = data.decode("utf-8", "ignore").split("\n")
    for _ in range(source.choice((1, 1, 2, 3))):
        at, other = source.randrange(len(lines)), source.randrange(len(lines))
        match source.randrange(7):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(at, lines[other])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines.insert(at, source.choice(("Resources:", "- https://a", "Not Before: 2026-01-01T00:00:00Z", "")))
            case 4:
                lines[at] += source.choice(_VALUES)
            case _:
                lines[at] = re.sub(r"(: |^0x).*", lambda found: found[1] + source.choice(_VALUES), lines[at], count=1)
    return "\n".join(lines).encode()
