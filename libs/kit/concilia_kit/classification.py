"""What a job tells apart: a small declaration of classes, and of what pictures of them bear.

A classification is data, and no code goes by its name: whatever depends on the number of classes, on their codes and
names, on the one that must not be missed, on how inputs are normalised or on how pictures may be turned, takes it from
here. `LESIONS` is the one of HAM10000, which jobs and nodes have that name none.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from concilia_kit import lesions
from concilia_kit.strict import NO_TEXT, Text
from concilia_kit.wire.base import Wire

FEWEST, MOST = 2, 100
"""Classes that a classification may have."""
MAX_BYTES = 64 * 1024
"""Of a declaration's file; a hundred classes with long names have a third of it."""

Code = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
"""A class in short, as tables and folders have it."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_TEXT]
Deviation = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_TEXT]


Metric = Annotated[
    str,
    StringConstraints(
        pattern=r"^(balanced_accuracy|accuracy|macro_auc|(sensitivity|auc):[A-Za-z0-9][A-Za-z0-9_-]{0,31})$"
    ),
]
"""A figure that models are judged by, a share, the larger the better; of one class where a code follows (`judging`)."""
JUDGED_BY: tuple[Metric, ...] = ("balanced_accuracy",)


class Turns(StrEnum):
    """What a picture may be turned by in training without becoming one of another class, or one that cannot be."""

    FREE = "free"
    """Anything: dermoscopy, microscopy, a retina's patch."""
    MIRROR = "mirror"
    """Left for right, and a little of everything else: what has an up and a down."""
    NONE = "none"
    """A little of everything, but no mirror: a chest, where the heart is on one side."""


VIEWS: dict[Turns, tuple[tuple[int, ...], ...]] = {
    Turns.FREE: ((), (3,), (2,), (2, 3)),
    Turns.MIRROR: ((), (3,)),
    Turns.NONE: ((),),
}
"""How pictures may be looked at besides as they are: axes of a batch (n, 3, rows, columns) that are turned round."""


class Disease(Wire):
    """One class: its code, and its name in full."""

    code: Code
    name: Text = Field(min_length=1, max_length=100)


class Classification(Wire):
    """What is told apart. The order of `classes` is that of every model's outputs, every vector and every matrix.

    `mean` and `std` are of the inputs' three channels, RGB in [0, 1]; a grey picture has its one channel three times.
    """

    name: Text = Field(min_length=1, max_length=100)
    classes: tuple[Disease, ...] = Field(min_length=FEWEST, max_length=MOST)
    critical: Code | None = Field(default=None, description="code of the class that must not be missed")
    mean: tuple[Share, Share, Share] = Field(default=lesions.MEAN, description="of the inputs; ImageNet's by default")
    std: tuple[Deviation, Deviation, Deviation] = Field(default=lesions.STD, description="likewise")
    turns: Turns = Turns.FREE
    # Left out where it is the usual: what was declared before there was a choice stays what it was.
    metrics: tuple[Metric, ...] = Field(
        default=JUDGED_BY,
        min_length=1,
        max_length=5,
        exclude_if=lambda metrics: metrics == JUDGED_BY,
        description="what models are judged by, the headline first, which a target is of",
    )

    @model_validator(mode="after")
    def _codes(self) -> Self:
        if len(set(self.codes)) != len(self.codes):
            raise ValueError("two classes have one code")
        if self.critical is not None and self.critical not in self.codes:
            raise ValueError(f"the critical class is none of the classes: '{self.critical}'")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("a metric is named twice")
        for metric in self.metrics:
            _, of, code = metric.partition(":")
            if of and code not in self.codes:
                raise ValueError(f"a metric is of none of the classes: '{metric}'")
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        """The classes' codes, in order."""
        return tuple(each.code for each in self.classes)

    @property
    def critical_index(self) -> int | None:
        """Where the class is that must not be missed, if one is."""
        return None if self.critical is None else self.codes.index(self.critical)

    def unlike(self, other: Classification) -> str:
        """In what this one differs from another, in words; empty where it does not."""
        if self.name != other.name:
            return f"it is '{self.name}', and not '{other.name}'"
        named = ("classes", "critical", "mean", "std", "turns", "metrics")
        found = [name for name in named if getattr(self, name) != getattr(other, name)]
        return f"'{self.name}' has other {' and '.join(found)}" if found else ""


LESIONS = Classification(
    name="HAM10000",
    classes=tuple(Disease(code=code, name=lesions.FULL_NAMES[code]) for code in lesions.CLASSES),
    critical=lesions.CLASSES[lesions.MELANOMA],
)
"""The seven lesions of HAM10000; left out of JSON wherever it stands, as it was before there were others."""


Classified = Annotated[
    Classification,
    Field(
        exclude_if=lambda classification: classification == LESIONS,
        description="what is told apart; HAM10000's lesions where it is left out",
    ),
]
"""As a member of what crosses a wire, with `LESIONS` as its default."""


class Layout(StrEnum):
    """How a node's folder holds pictures and what they show."""

    HAM10000 = "ham10000"
    """A table of pictures with lesion and class (`dx`), and the pictures."""
    FOLDERS = "folders"
    """A folder for each class, named by its code."""
    MEDMNIST = "medmnist"
    """One .npz file of arrays as MedMNIST has them; label n is the classification's n-th class, from 0."""


class Declaration(Wire):
    """A file that names a classification, and how a node's pictures of it lie. Whoever makes a job needs the first, a
    node both."""

    classification: Classification = LESIONS
    layout: Layout = Layout.HAM10000

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a declaration's file, JSON in UTF-8. Raises `ValueError` of one line for what is none, `OSError`."""
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path} is no declaration: it is larger than {MAX_BYTES} bytes")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise ValueError(f"{path} is no declaration of a classification: {where}: {fault['msg']}") from error


HAM10000 = Declaration()
