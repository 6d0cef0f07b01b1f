"""Hostile safetensors files by kind: those of the format's published audit and own tests, and what our fuzzers found.

Sources: Trail of Bits, "Hugging Face Safetensors: security assessment" (2023): duplicate keys, holes and overlaps that
make polyglots, headers without a bound, parsers that disagree; the tests of the safetensors package. The oracle is that
package: what it refuses, we refuse.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
from concilia_kit import tensorheader
from concilia_kit.tensorfile import MalformedFile, TensorFile

A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def wrapped(header: bytes, data: bytes = b"", says: int | None = None) -> bytes:
    """A file of that header; `says` is another length than its own."""
    return (len(header) if says is None else says).to_bytes(8, "little") + header + data


def of(document: Any, data: bytes = bytes(4)) -> bytes:
    return wrapped(json.dumps(document).encode(), data)


def zip_of_a_pickle() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'id'\ntR.")
    return out.getvalue()


VALID = of({"a": A})
HOSTILE: dict[str, bytes] = {
    # the eight bytes before the header
    "nothing": b"",
    "seven bytes": bytes(7),
    "length of nothing": wrapped(b""),
    "length above the bound": wrapped(b"{}", says=100_000_001),
    "length of 2^63": wrapped(b"{}", says=2**63),
    "length of 2^64 - 1": wrapped(b"{}", says=2**64 - 1),
    "length that wraps with its own eight bytes": wrapped(b"{}", says=2**64 - 8),
    "length beyond the file": wrapped(b"{}", says=3),
    "length in big-endian": (2).to_bytes(8, "big") + b"{}",
    # the header as text
    "not UTF-8": wrapped(b'{"\xff":1}'),
    "UTF-16": wrapped('{"a":1}'.encode("utf-16")),
    "overlong UTF-8": wrapped(b'{"\xc0\xaf":1}'),
    "surrogate in UTF-8": wrapped(b'{"\xed\xa0\x80":' + json.dumps(A).encode() + b"}", bytes(4)),
    "byte order mark": wrapped(b"\xef\xbb\xbf{}"),
    "whitespace first": wrapped(b" {}"),
    "newline first": wrapped(b"\n{}"),
    "another document behind": wrapped(b"{}{}"),
    "NUL behind": wrapped(b"{}\0"),
    "text behind": wrapped(b"{} x"),
    "comment": wrapped(b"{/* */}"),
    "trailing comma": wrapped(b'{"a":' + json.dumps(A).encode() + b",}", bytes(4)),
    "single quotes": wrapped(b"{'a':1}"),
    "no JSON": wrapped(b"abcd"),
    "a list": wrapped(b"[]"),
    "null": wrapped(b"null"),
    "a number": wrapped(b"12"),
    "unfinished": wrapped(b'{"a":'),
    "a hundred thousand brackets": wrapped(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a hundred thousand objects": wrapped(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "an integer of five thousand digits": wrapped(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)
    ),
    "minus nothing as an offset": wrapped(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
    "minus nothing as a dimension": wrapped(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
    # keys
    "tensor twice": wrapped(b'{"a":%b,"a":%b}' % ((json.dumps(A).encode(),) * 2), bytes(4)),
    "tensor twice by an escape": wrapped(b'{"a":%b,"\\u0061":%b}' % ((json.dumps(A).encode(),) * 2), bytes(4)),
    "member twice": wrapped(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "metadata twice": wrapped(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata's key twice": wrapped(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "name of half a surrogate pair": wrapped(b'{"\\ud800":' + json.dumps(A).encode() + b"}", bytes(4)),
    "metadata of half a surrogate pair": wrapped(b'{"__metadata__":{"a":"\\udfff"}}'),
    "metadata's key of half a surrogate pair": wrapped(b'{"__metadata__":{"\\udc00":"a"}}'),
    # metadata
    **{
        f"metadata that is {value!r}": of({"__metadata__": value}, b"")
        for value in ([], "a", 1, True, {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]})
    },
    # a tensor's entry
    **{f"entry that is {value!r}": of({"a": value}) for value in (None, 1, "a", [], {}, [A])},
    **{f"no {name}": of({"a": {key: value for key, value in A.items() if key != name}}) for name in A},
    "another member": of({"a": A | {"offset": 0}}),
    **{
        f"dtype {value!r}": of({"a": A | {"dtype": value}}) for value in ("F33", "f32", "", "O", "V4", None, 3, ["F32"])
    },
    **{
        f"shape {value!r}": of({"a": A | {"shape": value}})
        for value in (
            *(None, 1, "1", {}, [None], ["1"], [[1]], [1.0], [1.5], [-1], [True], [0], [2], [-1, -1], [float("nan")]),
            *([2**32, 2**32], [2**63, 2], [2**64], [2**64 + 1], [2**62, 4, 1], [2**48], [1, float("inf")]),
        )
    },
    **{
        f"offsets {value!r}": of({"a": A | {"data_offsets": value}})
        for value in (
            *(None, 4, "0,4", {}, [], [0], [0, 4, 4], ["0", "4"], [0.0, 4.0], [0, 4.5], [False, 4], [None, 4]),
            *(
                [4, 0],
                [-4, 0],
                [-1, 3],
                [0, -4],
                [4, 8],
                [0, 2**63],
                [2**64 - 4, 2**64],
                [2**63, 2**63 + 4],
                [0, 2**64],
            ),
        )
    },
    # where the data lie
    "a byte too few": VALID[:-1],
    "a byte behind": VALID + b"\0",
    "data without a tensor": of({}),
    "a hole first": of({"a": A | {"data_offsets": [4, 8]}}, bytes(8)),
    "a hole between": of({"a": A, "b": A | {"data_offsets": [8, 12]}}, bytes(12)),
    "a hole last": of({"a": A}, bytes(8)),
    "an overlap": of({"a": A | {"shape": [2], "data_offsets": [0, 8]}, "b": A | {"data_offsets": [4, 8]}}, bytes(8)),
    "one inside the other": of(
        {"a": A | {"shape": [3], "data_offsets": [0, 12]}, "b": A | {"data_offsets": [4, 8]}}, bytes(12)
    ),
    "two of one range": of({"a": A, "b": A}),
    "a range that starts in the header": of({"a": A | {"data_offsets": [-8, -4]}}),
    "no elements, and bytes": of({"a": A | {"shape": [0]}}),
    "no elements by a factor that overflows": of({"a": A | {"shape": [2**63, 2**63, 0], "data_offsets": [0, 0]}}, b""),
    "no elements, and not in line": of({"a": A, "b": A | {"shape": [0], "data_offsets": [2, 2]}}),
    # files that are another kind of file as well
    "a zip with a pickle behind": VALID + zip_of_a_pickle(),
    "a zip with a pickle first": zip_of_a_pickle() + VALID,
    "a pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    "a zip in a hole": of(
        {"a": A, "b": A | {"data_offsets": [4 + len(zip_of_a_pickle()), 8 + len(zip_of_a_pickle())]}},
        bytes(4) + zip_of_a_pickle() + bytes(4),
    ),
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "HTML": b"<html><script>1</script></html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_a_named_error(kind: str, tmp_path: Path) -> None:
    data = HOSTILE[kind]
    with pytest.raises(MalformedFile):
        tensorheader.parse(data, len(data))
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(MalformedFile):
        TensorFile.open(tmp_path / "file")


NESTED = """
import sys
from concilia_kit.tensorheader import MalformedFile, parse
sys.setrecursionlimit(1_000_000)  # as py_ecc does with 100,000 to whoever imports it
for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
    header = b'{"a":' + opening * 200_000 + b"1" + closing * 200_000 + b"}"
    file = len(header).to_bytes(8, "little") + header
    try:
        parse(file, len(file))
    except MalformedFile:
        print("refused")
"""


def test_nesting_is_bounded_whatever_the_interpreters_limit() -> None:
    """In a process of its own, which a parser without a bound ends by a segmentation fault."""
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused"]), done.stderr


OURS_ALONE = {
    "whitespace first",
    "newline first",
    "tensor twice",
    "tensor twice by an escape",
    "metadata's key twice",
    "another member",
}
"""What the package takes and we do not: the format's description has keys once, and a header that begins with {."""


def taken_by_the_reference(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


def test_what_the_reference_refuses_is_refused() -> None:
    assert {kind for kind, data in HOSTILE.items() if taken_by_the_reference(data)} == OURS_ALONE


def test_a_valid_file_and_its_padding_are_taken() -> None:
    """So that what is above is refused for its reason."""
    for data in (VALID, wrapped(json.dumps({"a": A}).encode() + b"   ", bytes(4)), of({}, b"")):
        assert tensorheader.parse(data, len(data)).data_start == len(data) - 4 * ("a" in str(data))
        safetensors.deserialize(data)


@pytest.mark.parametrize(
    "kind", ["length of 2^63", "shape [4294967296, 4294967296]", "offsets [0, 9223372036854775808]"]
)
def test_what_is_claimed_is_not_allocated(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFile):
            tensorheader.parse(HOSTILE[kind], len(HOSTILE[kind]))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
