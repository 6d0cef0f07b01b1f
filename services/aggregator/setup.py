"""Builds the compiled part of exact averaging, with a C compiler that comes as a package (ziglang) and needs no other.

One library for each level of the processor's abilities: which of them is loaded, `exact/kernels.py` decides. All give
the same bits, as the compiler may neither contract nor reorder anything.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("concilia_aggregator/exact")
LEVELS = {"x86_64": ("x86_64_v4", "x86_64_v3", "x86_64")}
"""By machine, as zig names them; where none are named, the least of that machine."""
FLAGS = (
    "-O3",
    "-s",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-sanitize=undefined",  # which zig adds for want of anything else
    "-Wall",
    "-Wextra",
    "-Werror",
)


class Build(build_ext):
    """Runs the compiler; what it makes is no module of Python's, and the same for all its versions."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where a library goes, in the package."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile one level's library."""
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        level = ext.name.rpartition("-")[2]
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", _target(), f"-mcpu={level}"]
        self.spawn([*compiler, *FLAGS, "-o", str(library), *ext.sources])


def _machine() -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def _target() -> str:
    if sys.platform == "darwin":
        return f"{_machine()}-macos"
    return f"{_machine()}-linux-{'gnu.2.28' if platform.libc_ver()[0] == 'glibc' else 'musl'}"


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        Extension(
            f"concilia_aggregator.exact.kernels-{level}",
            [str(SOURCES / "kernels.c")],
            depends=[str(SOURCES / "whole.h")],
        )
        for level in LEVELS.get(_machine(), ("baseline",))
    ],
)
