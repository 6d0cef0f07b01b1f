"""How the tensors are named that batch normalisation measures and does not learn."""

from __future__ import annotations

VARIANCE = ".running_var"
"""The end of the name of a variance, which is never negative."""
STATISTICS = (".running_mean", VARIANCE)
"""The ends of the names of all that it measures but for its counter."""
