"""The tus protocol's words: what its headers say, and how they are answered; pure.

Spoken are the core protocol and the extensions creation, creation-with-upload, termination and expiration. An upload's
metadata must name the SHA-256 of the whole as `digest`, which is why there is no checksum a part: each byte would be
hashed twice. Source: tus 1.0.0 (tus.io/protocols/resumable-upload).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

from concilia_model.errors import (
    DigestMismatch,
    OffsetMismatch,
    TusVersionUnsupported,
    UploadMalformed,
    UploadTooLong,
    UploadTypeUnsupported,
)

VERSION = "1.0.0"
EXTENSIONS = ("creation", "creation-with-upload", "termination", "expiration")
MEDIA_TYPE = "application/offset+octet-stream"
RESUMABLE = {"Tus-Resumable": VERSION}
"""Stands on every answer."""

MAX_METADATA = 4096
_NUMBER = re.compile(r"[0-9]{1,18}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Creation:
    """What a new upload is announced with: SHA-256 and number of bytes of the whole."""

    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that come: where they begin, and how many there are if that was said."""

    offset: int
    announced: int | None


def speak(headers: Mapping[str, str]) -> None:
    """Both sides speak the same version. Raises `TusVersionUnsupported`."""
    if headers.get("tus-resumable") != VERSION:
        raise TusVersionUnsupported(
            f"this speaks tus {VERSION}: send 'Tus-Resumable: {VERSION}'", headers={"Tus-Version": VERSION}
        )


def creation(headers: Mapping[str, str]) -> Creation:
    """Read the headers of a new upload. Raises `UploadMalformed`."""
    if "upload-defer-length" in headers:
        raise UploadMalformed("a length that is said later is not supported; send 'Upload-Length'")
    digest = metadata(headers.get("upload-metadata", "")).get("digest", "")
    if not _DIGEST.fullmatch(digest):
        raise UploadMalformed("'Upload-Metadata' must have the file's SHA-256 in hexadecimal as 'digest', in base64")
    return Creation(digest, _number(headers, "upload-length"))


def part(headers: Mapping[str, str]) -> Part:
    """Read the headers of bytes to append. Raises `UploadTypeUnsupported` and `UploadMalformed`."""
    check_type(headers)
    return Part(_number(headers, "upload-offset"), announced(headers))


def check_type(headers: Mapping[str, str]) -> None:
    """The bytes' media type. Raises `UploadTypeUnsupported`."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UploadTypeUnsupported(f"send the bytes as '{MEDIA_TYPE}'")


def announced(headers: Mapping[str, str]) -> int | None:
    """A body's `Content-Length`, None where it is not said."""
    said = headers.get("content-length", "")
    return int(said) if _NUMBER.fullmatch(said) else None


def metadata(text: str) -> dict[str, str]:
    """Names and values of `Upload-Metadata`: pairs with commas between, each value in base64. Raises `UploadMalformed`.

    What is no UTF-8 is left out: other clients may send what they like under names not read here.
    """
    if len(text) > MAX_METADATA:
        raise UploadMalformed(f"'Upload-Metadata' may have {MAX_METADATA} characters at most")
    found: dict[str, str] = {}
    for pair in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = pair.partition(" ")
        if name in found:
            raise UploadMalformed("'Upload-Metadata' names a key twice")
        try:
            found[name] = base64.b64decode(value, validate=True).decode()
        except UnicodeDecodeError:
            continue
        except ValueError as error:
            raise UploadMalformed("a value of 'Upload-Metadata' is no base64") from error
    return found


def check_part(received: int, length: int, part: Part) -> None:
    """Whether bytes go on where the upload stands and end where it ends. Raises `OffsetMismatch`, `UploadTooLong`."""
    if part.offset != received:
        raise OffsetMismatch(
            f"the upload stands at {received}, not at {part.offset}",
            extra={"offset": received},
            headers={"Upload-Offset": str(received)},
        )
    check_end(received + (part.announced or 0), length)


def check_end(reached: int, length: int) -> None:
    """Raises `UploadTooLong` where more came, or will come, than was announced."""
    if reached > length:
        raise UploadTooLong(f"the upload was announced with {length} bytes")


def check_known(size: int, length: int) -> None:
    """Bytes known by their digest have the length announced, or the digest is another file's. Raises
    `DigestMismatch`."""
    if size != length:
        raise DigestMismatch(f"the file of this digest has {size} bytes, not {length}")


def standing(offset: int, length: int, expires_at: float) -> dict[str, str]:
    """The headers that say where an upload stands; `expires_at` in Unix seconds."""
    return {
        **RESUMABLE,
        "Upload-Offset": str(offset),
        "Upload-Length": str(length),
        "Upload-Expires": format_datetime(datetime.fromtimestamp(int(expires_at), UTC), usegmt=True),
        "Cache-Control": "no-store",
    }


def options(max_bytes: int) -> dict[str, str]:
    """The headers that say what is spoken here."""
    return {
        **RESUMABLE,
        "Tus-Version": VERSION,
        "Tus-Extension": ",".join(EXTENSIONS),
        "Tus-Max-Size": str(max_bytes),
    }


def _number(headers: Mapping[str, str], name: str) -> int:
    said = headers.get(name, "")
    if not _NUMBER.fullmatch(said):
        raise UploadMalformed(f"'{name.title()}' must be a whole number of bytes")
    return int(said)
