"""Mechanism that every Concilia service shares: wire models, digests, signatures, tensors on disk, HTTP, queue, logs.

The kit holds no service's rules. A rule that only one service needs lives in that service.
"""

import os

# keccak-256 is in every address, signature and call. eth-hash takes the slower of its two back ends where nobody says
# otherwise: 20 times slower for what is hashed here.
os.environ.setdefault("ETH_HASH_BACKEND", "pysha3")
