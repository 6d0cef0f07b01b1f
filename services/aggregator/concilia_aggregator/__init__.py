"""Jobs, the round state machine, strategies, screening and folding. NumPy only: no torch, no web3."""
