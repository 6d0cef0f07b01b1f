"""A hospital's folder by its declaration: which reader reads it, and whether it is still there."""

from __future__ import annotations

import os
from pathlib import Path

from concilia_kit.classification import HAM10000, Classification, Declaration, Layout

from concilia_client_node import archive, dataset
from concilia_client_node.dataset import DEPTH, SUFFIXES, Folder, Picture, source_of
from concilia_client_node.errors import DatasetError


def declared(path: Path | None) -> Declaration:
    """What a declaration's file says; HAM10000 without one. Raises `DatasetError`, `OSError`."""
    if path is None:
        return HAM10000
    try:
        return Declaration.read(path)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def read(folder: Path, declaration: Declaration = HAM10000) -> Folder:
    """What a folder holds. Nothing is decoded. Raises `DatasetError`."""
    match declaration.layout:
        case Layout.HAM10000:
            return dataset.read(folder, declaration.classification)
        case Layout.FOLDERS:
            return read_folders(folder, declaration.classification)
        case Layout.MEDMNIST:
            return archive.read(folder, declaration.classification)


def require(folder: Path, layout: Layout) -> None:
    """See that a folder that was read is still one of its layout. Raises `DatasetError`."""
    match layout:
        case Layout.HAM10000:
            if not any((folder / name).is_file() for name in dataset.TABLES):
                raise DatasetError("the data folder's table is gone")
        case Layout.FOLDERS:
            if not folder.is_dir():
                raise DatasetError("the data folder is gone")
        case Layout.MEDMNIST:
            archive.find(folder)


def read_folders(folder: Path, classification: Classification) -> Folder:
    """Pictures in a folder for each class, named by its code; of a class without a folder there are none. Each picture
    is a lesion of its own. Raises `DatasetError`."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; name the one that holds a folder for each class")
    pictures: list[Picture] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if path.name not in classification.codes:
            raise DatasetError(f"{path.name} is no class of {classification.name}: {', '.join(classification.codes)}")
        label = classification.codes.index(path.name)
        pictures += [Picture(name, name, label, None, file) for name, file in _files(folder, path)]
    if not pictures:
        raise DatasetError(f"{folder} has no pictures in folders named {', '.join(classification.codes)}")
    return Folder(tuple(pictures), source_of(folder, classification), classification)


def _files(root: Path, folder: Path) -> list[tuple[str, Path]]:
    """Every picture file below, by its path from `root`."""
    found: list[tuple[str, Path]] = []
    for directory, folders, names in os.walk(folder):
        here = Path(directory)
        folders[:] = sorted(folders) if len(here.relative_to(root).parts) <= DEPTH else []
        found += [
            ((here / name).relative_to(root).as_posix(), here / name)
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES
        ]
    return found
