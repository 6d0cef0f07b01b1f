"""Who may read which artifact; pure.

Coordinators, administrators and auditors read everything. A hospital reads what it uploaded itself and what is shared:
artifacts the service made, uploads by coordinators and administrators, and the trunks of adapters among those: who may
fetch an adapter can use it. What a hospital's own file names as its trunk opens nothing. It never reads another
hospital's bytes, nor what is secret, as a file's own metadata says: the keys of noise, with which that could be taken
off a model again. Who marks a file so shuts hospitals out, and lets nobody in.
"""

from __future__ import annotations

from concilia_kit.roles import Role
from concilia_kit.tokens import Principal

UPLOADERS = (Role.HOSPITAL, Role.COORDINATOR, Role.ADMIN)
READERS = (Role.COORDINATOR, Role.ADMIN, Role.AUDITOR, Role.HOSPITAL)
OVERSEERS = (Role.ADMIN, Role.COORDINATOR, Role.AUDITOR)
"""Who may see what the store holds of everybody."""

_READ_ALL = frozenset(OVERSEERS)


def reads_everything(caller: Principal) -> bool:
    """Whether the caller may read artifacts of any owner."""
    return bool(caller.roles & _READ_ALL)


def uploads_are_shared(caller: Principal) -> bool:
    """Whether every hospital may read what the caller uploads.

    An address that is a hospital besides uploads as a hospital: its updates must not become readable to others.
    """
    return Role.HOSPITAL not in caller.roles and bool(caller.roles & {Role.COORDINATOR, Role.ADMIN})
