"""Verifying a job: its lineage from the ledger's events, its models folded again from the stored updates."""
