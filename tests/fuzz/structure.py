"""Mutations of what has a form: JSON documents, safetensors files around them, PNG and JPEG files.

Random bytes seldom get past a length, a bracket or a checksum. These changes keep what a parser looks at first right,
so that what comes after it is reached.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**32 - 1, 2**47, 2**48, 2**53, 2**63, 2**64, 2**200, 1.5, 1e308, float("nan"), True)
TEXTS = (
    "",
    "F32",
    "F16",
    "BF16",
    "BOOL",
    "\0",
    "\u202e",
    "a" * 300,
    "../../x",
    "__metadata__",
    "\ud800",
    "topk:0.5+zstd",
)
ATOMS: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, [], {}, [[]], [0], {"a": 1})
_PNG = b"\x89PNG\r\n\x1a\n"


def changed_json(text: bytes, source: random.Random) -> bytes:
    """A JSON document with something in it changed, renamed, doubled, nested or left out; other bytes as they are."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    try:
        for _ in range(source.choice((1, 1, 2, 4))):
            document = _changed(document, source)
        out = json.dumps(document, separators=(",", ":"), ensure_ascii=source.random() < 0.5)
    except RecursionError:
        return text
    match source.randrange(14):
        case 0:
            out = out[:-1] + ("," if len(out) > 2 else "") + out[1:]  # every key twice
        case 1:
            out = " " + out
        case 2:
            depth = source.choice((5, 400, 4000))
            out = out.replace("[", "[" * depth, 1).replace("]", "]" * depth, 1)
        case 3:
            out += source.choice((" ", "\0", "x", "{}"))
        case 4:
            digits = [at for at, character in enumerate(out) if character.isdigit()]
            at = source.choice(digits or [0])
            out = out[:at] + source.choice(("0", "-", "9" * 5000, "e9", ".0", "0x1")) + out[at:]
    return out.encode("utf-8", "surrogatepass")


def _changed(value: Any, source: random.Random) -> Any:
    if isinstance(value, dict) and value and source.random() < 0.85:
        value = dict(value)
        key = source.choice(list(value))
        match source.randrange(8):
            case 0:
                del value[key]
            case 1:
                value[source.choice(TEXTS)] = value.pop(key)
            case 2:
                value[f"{key}{source.choice(TEXTS)}"] = copy.deepcopy(value[key])
            case _:
                value[key] = _changed(value[key], source)
        return value
    if isinstance(value, list) and value and source.random() < 0.85:
        value = list(value)
        at = source.randrange(len(value))
        match source.randrange(6):
            case 0:
                del value[at]
            case 1:
                value.insert(at, source.choice(ATOMS))
            case _:
                value[at] = _changed(value[at], source)
        return value
    if type(value) is int and source.random() < 0.5:
        return value + source.choice((-1, 1, 4, -4, value))
    if isinstance(value, str) and value and source.random() < 0.6:
        at = source.randrange(len(value))
        return value[:at] + source.choice((*TEXTS, value[at:] + value)) + value[at + source.randrange(2) :]
    return source.choice(ATOMS)


def changed_tensorfile(data: bytes, source: random.Random) -> bytes:
    """A safetensors file whose header or data are changed; its length mostly fits, its size often."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        return data
    header, tail = data[8 : 8 + length], bytearray(data[8 + length :])
    if source.random() < 0.6:
        header = changed_json(header.rstrip(b" "), source)
    if tail and source.random() < 0.7:
        for _ in range(source.choice((1, 4, 32))):
            tail[source.randrange(len(tail))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
    if source.random() < 0.4:
        tail = _fitting(header, tail)
    said = len(header) if source.random() < 0.95 else source.choice((0, 1, len(header) + 1, 2**32, 2**63, 2**64 - 1))
    return said.to_bytes(8, "little") + header + bytes(tail)


def _fitting(header: bytes, tail: bytearray) -> bytearray:
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return tail
    if type(end) is not int or not 0 <= end <= 2**16:
        return tail
    return (tail + bytearray(end))[:end]


def changed_picture(data: bytes, source: random.Random) -> bytes:
    """A PNG with a chunk changed and its checksum right, a JPEG with a segment changed and its length right."""
    if data.startswith(_PNG):
        return _changed_png(data, source)
    return _changed_jpeg(data, source) if data.startswith(b"\xff\xd8") else data


def _changed_png(data: bytes, source: random.Random) -> bytes:
    chunks: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    for _ in range(source.choice((1, 1, 2, 3))):
        at = source.randrange(len(chunks))
        kind, body = chunks[at]
        match source.randrange(7):
            case 0:
                del chunks[at]
                if not chunks:
                    return _PNG
            case 1:
                chunks.insert(at, chunks[at])
            case 2:
                chunks[at] = (
                    source.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")),
                    body,
                )
            case 3:
                other = source.randrange(len(chunks))
                chunks[at], chunks[other] = chunks[other], chunks[at]
            case 4 if kind in (b"IDAT", b"zTXt", b"iCCP"):
                chunks[at] = kind, zlib.compress(source.randbytes(30) * source.choice((1, 200)))
            case _:
                chunks[at] = kind, _spoilt(body, source)
    written = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return _PNG + b"".join(written)


def _changed_jpeg(data: bytes, source: random.Random) -> bytes:
    segments: list[tuple[int, bytes]] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + max(length, 2)
    rest = data[at:]
    if segments:
        at = source.randrange(len(segments))
        marker, body = segments[at]
        match source.randrange(6):
            case 0:
                del segments[at]
            case 1:
                segments.insert(at, segments[at])
            case 2:
                segments[at] = source.choice((0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xC0, 0xC2, 0xC4, 0xDB, 0xDD)), body
            case _:
                segments[at] = marker, _spoilt(body, source)
    written = [bytes((0xFF, marker)) + struct.pack(">H", min(len(body) + 2, 65535)) + body for marker, body in segments]
    return b"\xff\xd8" + b"".join(written) + rest


def _spoilt(body: bytes, source: random.Random) -> bytes:
    out = bytearray(body) or bytearray(1)
    for _ in range(source.choice((1, 1, 2, 6))):
        out[source.randrange(len(out))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
    if source.random() < 0.2:
        del out[source.randrange(len(out)) :]
    if source.random() < 0.2:
        out += source.randbytes(source.choice((1, 4, 40)))
    return bytes(out)
