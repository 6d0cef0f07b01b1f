"""Jobs, the round state machine, strategies, screening and folding. NumPy and C only: no torch, no web3."""
