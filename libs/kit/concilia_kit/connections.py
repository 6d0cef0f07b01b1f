"""How many connections a process holds: fewer than it may have files open, so that what it works with can be opened.

Where files run out, it is a database or an artifact that cannot be opened, and a request that was taken on fails.
"""

from __future__ import annotations

import resource

MOST = 8192
"""Connections; each that only waits costs some 10 KB."""
_FILES = 4 * MOST
_SHARE = 0.75  # of the files that a process may open; the rest is for databases, Redis, artifacts and threads


def raise_limit() -> None:
    """Let this process open as many files as it may have, up to what it can use: the usual 1,024 are for programs that
    use select(2), which this one does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most() -> int:
    """Connections that this process may hold at one time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, int(soft * _SHARE))
