"""What a program calls itself, cut down to two words that its owner knows again: 'Firefox, Linux'. Pure.

The header `User-Agent` has versions, models and whatever its sender likes. All that is kept are words of the lists
here, or the first product's name where it is no browser's; nothing relies on their being true.

Source: RFC 9110, section 10.1.5 (User-Agent), section 5.6.2 (tokens).
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"

# In this order: Edge and Opera also call themselves Chrome, Chrome calls itself Safari.
_PROGRAMS = {"Edg": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
_SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "Mac OS": "macOS",
    "Linux": "Linux",
}
_SEARCHED = 400  # characters
_PRODUCT = re.compile(r"[A-Za-z0-9._-]{1,40}")


def described(user_agent: str | None) -> str:
    """Program and system of a header, in a hundred characters at most."""
    text = (user_agent or "")[:_SEARCHED]
    product = _PRODUCT.match(text)
    program = next((name for mark, name in _PROGRAMS.items() if mark in text), product and product[0])
    system = next((name for mark, name in _SYSTEMS.items() if mark in text), None)
    return ", ".join(filter(None, (program, system))) or UNKNOWN
