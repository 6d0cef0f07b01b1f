"""What goes wrong in a round's masking."""

from __future__ import annotations


class MaskingError(ValueError):
    """A document of the masking does not fit the others, was changed, or too few are left; the message says which.
    Nothing is revealed, masked or unmasked by who raises it."""
