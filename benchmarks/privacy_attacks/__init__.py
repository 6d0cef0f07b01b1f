"""What an update gives away of a hospital's pictures, by attacks of the literature on files as the nodes write them.

`inversion` and `tampering` rebuild pictures, `membership` tells who was trained on, `prevalence` how many of each class
a hospital has; `payload` makes what an attacker holds, `likeness` says how like two pictures are, and `report` runs
everything. The attacks on robust rules are `benchmarks.attacks`.
"""
