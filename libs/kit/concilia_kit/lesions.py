"""The seven lesion classes of HAM10000, in the one order in which every model outputs them.

Tschandl, Rosendahl, Kittler, "The HAM10000 dataset", Sci Data 5:180161 (2018).
"""

from __future__ import annotations

CLASSES: tuple[str, ...] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
"""Codes of the `dx` column, alphabetical; index = position in a model's output and in a confusion matrix."""

FULL_NAMES: dict[str, str] = {
    "akiec": "Actinic keratosis / Bowen's disease",
    "bcc": "Basal cell carcinoma",
    "bkl": "Benign keratosis",
    "df": "Dermatofibroma",
    "mel": "Melanoma",
    "nv": "Melanocytic nevus",
    "vasc": "Vascular lesion",
}

MELANOMA = CLASSES.index("mel")

MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of the inputs, RGB in [0, 1]: ImageNet's, because the trunks were trained with it."""

STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation, likewise."""
