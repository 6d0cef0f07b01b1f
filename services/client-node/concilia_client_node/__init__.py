"""One hospital: its own images, its own key, local training and evaluation.

No image, label row, lesion or file name leaves this package: only model tensors, counts, seconds and signatures do.
"""
