"""Verifying a job from here: what the aggregator's verifier needs of this client."""
