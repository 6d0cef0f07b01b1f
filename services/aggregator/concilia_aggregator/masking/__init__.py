"""Secure aggregation at the aggregator: beside each secure round a room, in which its hospitals agree on masks, hand
each other shares, consent to who is in the sum, and reveal what takes the masks off that sum and off nothing else.

`rules` says when a room moves on; `rooms` keeps it; `receiving` and `api` are what hospitals' nodes see of it; `moves`
is what the worker does; `screening` judges masked updates. What is computed is `concilia_kit.masking`.
"""
