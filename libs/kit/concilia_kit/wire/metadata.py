"""What the metadata of safetensors files says of files beside them, and of who may read them, where several services go
by it."""

from __future__ import annotations

STATE = "concilia.state"
"""In a global model's file: digest of the artifact with what its strategy remembers, where it does. Tensors by
`state_name`, float32, in the shapes of the model's floating ones."""
NOISE = "concilia.noise"
"""In a global model's file: digest of the artifact with the key of the noise that is on it, where there is any. It
binds who made the model to that noise, and tells nothing of it."""
CONFIDENTIAL = "concilia.secret"
"""In the file of an artifact that nobody may read but who may read every hospital's updates: what it is."""


def state_name(what: str, tensor: str) -> str:
    """The name under which something is remembered of a tensor."""
    return f"{what}:{tensor}"
