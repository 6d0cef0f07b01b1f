"""Flower's side of the comparison: its own FedAvg, its own SuperLink and SuperNodes, a client that adds a constant."""
