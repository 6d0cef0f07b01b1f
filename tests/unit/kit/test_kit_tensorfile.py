"""safetensors files: the reference implementation as oracle, and every way a header can lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from concilia_kit import tensorfile
from concilia_kit.tensorfile import MalformedFile, TensorFile, TensorSpec, TensorWriter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
tensor_maps = st.dictionaries(names, arrays, max_size=6)


def write(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    specs = {name: TensorSpec(value.dtype, value.shape) for name, value in tensors.items()}
    with TensorWriter(path, specs, metadata) as writer:
        for name in writer.order:
            writer.append(tensors[name].reshape(-1))
    return writer.digest


@given(tensor_maps)
def test_writes_what_the_reference_writes(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("t") / "ours"
    digest = write(path, tensors)
    reference = safetensors.numpy.save(tensors)
    assert path.read_bytes() == reference
    assert digest == hashlib.sha256(reference).hexdigest()


@given(tensor_maps)
def test_reads_what_the_reference_writes(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("t") / "reference"
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"a": "b"}))
    file = TensorFile.open(path)
    assert set(file) == set(tensors)
    assert file.header.metadata == {"a": "b"}
    for name, value in tensors.items():
        read = file.tensor(name)
        assert read.tobytes() == value.tobytes()
        assert read.shape == value.shape
        assert not read.flags.writeable or not read.size


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(MalformedFile):
        tensorfile.parse_header(data, len(data))


def header(document: object, data: int = 0, text: str | None = None) -> tuple[bytes, int]:
    encoded = (text if text is not None else json.dumps(document)).encode()
    return len(encoded).to_bytes(8, "little") + encoded, 8 + len(encoded) + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ((b"\x00" * 7, 7), "shorter"),
        ((b"\xff" * 8, 100), "claims"),
        (((5 * 2**20).to_bytes(8, "little"), 2**30), "claims"),
        (((50).to_bytes(8, "little") + b"{}", 10), "length"),
        (header(None, text="{} "), None),
        (header([]), "object"),
        (header(None, text=' {"a":1}'), "object"),
        (header(None, text='{"a":{},"a":{}}'), "twice"),
        (header(None, text="{" * 3000), "JSON"),
        (header({"a": entry(0, 8)}, data=4), "describes"),
        (header({"a": entry(0, 8)}, data=12), "describes"),
        (header({"a": entry(4, 8)}, data=8), "hole"),
        (header({"a": entry(0, 8), "b": entry(4, 12)}, data=12), "hole"),
        (header({"a": entry(0, 8), "b": entry(12, 16)}, data=16), "hole"),
        (header({"a": entry(0, 8, shape=[3])}, data=8), "fit its shape"),
        (header({"a": entry(0, 8, shape=[-2])}, data=8), "below 0"),
        (header({"a": entry(0, 8, shape=[True, 2])}, data=8), "malformed shape"),
        (header({"a": entry(0, 8, shape=[2**60, 2**60])}, data=8), "malformed shape"),
        (header({"a": entry(0, 8, shape=[1] * 9)}, data=8), "malformed shape"),
        (header({"a": entry(0, 8, dtype="F33")}, data=8), "dtype"),
        (header({"a": entry(0, 8) | {"x": 1}}, data=8), "nothing else"),
        (header({"a": entry(0, 8) | {"dtype": ["F32"]}}, data=8), "dtype"),
        (header({"__metadata__": {"a": 1}}), "text"),
        (header({"__metadata__": []}), "text"),
    ],
)
def test_headers_that_lie(case: tuple[bytes, int], words: str | None) -> None:
    prefix, size = case
    if words is None:
        tensorfile.parse_header(prefix, size)
    else:
        with pytest.raises(MalformedFile, match=words):
            tensorfile.parse_header(prefix, size)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    spec = {"a": TensorSpec(np.dtype("<f4"), (4,))}
    with pytest.raises(AttributeError), TensorWriter(tmp_path / "x", spec) as writer:
        writer.append(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="announced"), TensorWriter(tmp_path / "x", spec) as writer:
        writer.append(np.zeros(2, "<f4"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not open"):
        TensorWriter(tmp_path / "x", spec).append(np.zeros(1))
