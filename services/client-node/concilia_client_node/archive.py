"""MedMNIST's arrays: pictures and labels in one .npz file, read a row at a time and never by a pickle.

A file has `train_images`, `train_labels`, `val_images`, `val_labels`, `test_images` and `test_labels`: pictures uint8,
grey (n, s, s) or colour (n, s, s, 3), with s one of `SIDES`, and labels (n, 1), whole numbers from 0. What each array
is, is taken from its header and held against the sizes in the archive's own directory before anything is read; what
says that it swells to more than `MOST_INFLATED` times its bytes is refused. Pictures are never in memory all at once.

Sources: Yang et al., "MedMNIST v2", Sci Data 10:41 (2023); the .npy format, numpy.lib.format, version 1.0; PKWARE's
APPNOTE.TXT 6.3.10 of zip.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from concilia_kit.classification import Classification

from concilia_client_node.dataset import Folder, Picture, source_of
from concilia_client_node.errors import DatasetError
from concilia_client_node.split import Split

SUFFIX = ".npz"
TRAINING = ("train",)
HELD_OUT = ("val", "test")
SIDES = frozenset({28, 64, 128, 224})
MOST_ROWS = 2**21
MOST_MEMBERS = 64
MOST_INFLATED = 200
"""Bytes of an array to a byte in the archive; pictures have a tenth of that, and a bomb five times as many."""
MOST_LABELS_INFLATED = 1100  # labels in their classes' order have as many, and are small
_VERSION = (1, 0)  # its header's length has two bytes, so that none is large
_HEADER = 1000  # bytes; numpy writes 118

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Member:
    """An array in an archive: its shape and dtype by its header, which has `skip` bytes."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    skip: int


def find(folder: Path) -> Path:
    """The one archive of a folder. Raises `DatasetError`."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; name the one that holds MedMNIST's {SUFFIX} file")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and path.is_file())
    if len(found) != 1:
        raise DatasetError(f"{folder} has {len(found)} {SUFFIX} files, and must have one")
    return found[0]


def read(folder: Path, classification: Classification) -> Folder:
    """What a folder's archive holds, without its pictures. Each picture is a lesion of its own, and what the set's
    makers put into `val` and `test` is held out. Raises `DatasetError`."""
    path = find(folder)
    pictures: list[Picture] = []
    sides: dict[bool, list[str]] = {True: [], False: []}
    with _opened(path) as archive:
        shapes: set[tuple[int, ...]] = set()
        for part in (*TRAINING, *HELD_OUT):
            images, labels = _member(archive, path, f"{part}_images"), _member(archive, path, f"{part}_labels")
            shapes.add(_require_pictures(images, path, part))
            for row, label in enumerate(_labels(archive, labels, images.shape[0], len(classification.classes), path)):
                name = f"{part}:{row}"
                pictures.append(Picture(name, name, label, None, path, (f"{part}_images", row)))
                sides[part in HELD_OUT].append(name)
    if len(shapes) != 1:
        raise DatasetError(f"{path.name} has pictures of several sizes")
    if not pictures:
        raise DatasetError(f"{path.name} has no pictures")
    split = Split(frozenset(sides[False]), frozenset(sides[True]))
    return Folder(tuple(pictures), source_of(folder, classification), classification, split)


def rows(path: Path, name: str) -> Iterator[Array]:
    """The pictures of an array one after another, uint8 (s, s) or (s, s, 3). Raises `DatasetError`, in the middle too:
    what came before an error may be broken as well, as the archive's checksum is of the whole array."""
    with _opened(path) as archive:
        member = _member(archive, path, name)
        _require_pictures(member, path, name.removesuffix("_images"))
        shape = member.shape[1:]
        size = math.prod(shape)
        with archive.open(member.info) as file:
            file.read(member.skip)
            for _ in range(member.shape[0]):
                yield np.frombuffer(_exactly(file, size), np.uint8).reshape(shape)
            file.read(1)  # nothing; the checksum is compared at the end


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive, whose faults inside are a `DatasetError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    # Of archives that are none zipfile raises whatever their bytes lead it to.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{path.name} cannot be read as an {SUFFIX} file: {error}") from error


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> _Member:
    """An array by its header. Raises `DatasetError`."""
    found = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if len(archive.infolist()) > MOST_MEMBERS or len(found) != 1:
        raise DatasetError(f"{path.name} has {len(found)} arrays '{name}', and must have one")
    info = found[0]
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or info.flag_bits & 1:
        raise DatasetError(f"{path.name}: {name} is packed in a way that no {SUFFIX} file is")
    most = MOST_INFLATED if name.endswith("_images") else MOST_LABELS_INFLATED
    if info.file_size > most * (info.compress_size + 1):
        raise DatasetError(
            f"{path.name}: {name} says that it has {info.file_size} bytes in {info.compress_size}: no pictures are "
            "packed so small"
        )
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != _VERSION:
            raise DatasetError(f"{path.name}: {name} is of another version of the .npy format than 1.0")
        try:
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_HEADER)
        except Exception as error:  # it is read as Python's words, which fail in as many ways as words can
            raise DatasetError(f"{path.name}: {name} has no header that can be read") from error
        skip = file.tell()
    if by_columns or dtype.hasobject or dtype.kind not in "iu":
        raise DatasetError(f"{path.name}: {name} must have whole numbers, row by row, and not {dtype}")
    if any(length < 0 for length in shape) or not shape or shape[0] > MOST_ROWS:
        raise DatasetError(f"{path.name}: {name} may have {MOST_ROWS} rows at most, and has the shape {list(shape)}")
    if skip + math.prod(shape) * dtype.itemsize != info.file_size:
        raise DatasetError(f"{path.name}: {name} has another size than its shape {list(shape)} needs")
    return _Member(info, tuple(shape), dtype, skip)


def _require_pictures(member: _Member, path: Path, part: str) -> tuple[int, ...]:
    """The shape of one picture. Raises `DatasetError`."""
    shape = member.shape[1:]
    colour = len(shape) == 3 and shape[2] == 3
    if member.dtype != np.uint8 or not (len(shape) == 2 or colour) or shape[0] != shape[1] or shape[0] not in SIDES:
        raise DatasetError(
            f"{path.name}: {part}_images must be uint8 (n, s, s) or (n, s, s, 3) with s of {sorted(SIDES)}, and is "
            f"{member.dtype} {list(member.shape)}"
        )
    return shape


def _labels(archive: zipfile.ZipFile, member: _Member, count: int, classes: int, path: Path) -> list[int]:
    if member.shape != (count, 1):
        raise DatasetError(
            f"{path.name}: labels of {count} pictures must have the shape [{count}, 1], one class a picture, and have "
            f"{list(member.shape)}"
        )
    with archive.open(member.info) as file:
        file.read(member.skip)
        found = np.frombuffer(_exactly(file, count * member.dtype.itemsize), member.dtype)
        file.read(1)
    if count and (found.min() < 0 or found.max() >= classes):
        raise DatasetError(
            f"{path.name} has labels from {found.min()} to {found.max()}; the classification has {classes} classes, "
            f"which are 0 to {classes - 1}"
        )
    return [int(label) for label in found]


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise EOFError("it ends before its arrays do")
    return content
