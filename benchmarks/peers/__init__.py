"""The systems that Concilia's round is measured beside: each file here runs in its own environment."""
