"""Mechanism that every Concilia service shares: wire models, digests, signatures, tensors on disk, HTTP, queue, logs.

The kit holds no service's rules. A rule that only one service needs lives in that service.
"""
