"""A job's evidence in one file: a zip with JSON and safetensors, made the same byte by byte, and read with suspicion.

    events.json            the contract's events up to the job's end, membership included
    updates.json           signatures, and metrics where they are kept
    leaves.json            the updates of Merkle rounds, where there are any: what `concilia leaves` writes
    calldata.json          the updates' transactions, where a node was asked
    blocks.json            headers and receipts, where a node was asked
    artifacts/ab/abcd…     the model files under their SHA-256, and after them what the models' files name: the trunk of
                           an adapter, what a strategy remembers, the key of noise; unless left out
    manifest.json          the format, the contract, the job, and every member's size and SHA-256

Members stand in this order, stored without compression, with a fixed time. The manifest shows damage; it proves
nothing, since whoever changes a member can change the manifest. What proves is inside: signatures, digests, receipts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar

from concilia_aggregator.verification.verifier import ArtifactSource
from concilia_kit.digests import Digest, JobId
from concilia_kit.problems import Problem
from concilia_kit.signing import Domain
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.adapter import TRUNK
from concilia_kit.wire.base import Wire
from concilia_kit.wire.metadata import NOISE, STATE
from concilia_kit.wire.verification import Finding
from pydantic import Field, TypeAdapter, ValidationError

from concilia.connection import UsageError
from concilia.verification.blocks import Blocks
from concilia.verification.decoding import ChainEvent
from concilia.verification.evidence import Evidence, SignedUpdate
from concilia.verification.leaves import Leaf, Leaves

FORMAT = "concilia-bundle/1"
MOST_JSON = 256 * 2**20
"""Bytes of one JSON member."""
MOST_ARTIFACT = 16 * 2**30
"""Bytes of one artifact."""
MOST_MEMBERS = 100_000

_TIME = (1980, 1, 1, 0, 0, 0)
_PARTS = ("events.json", "updates.json", "leaves.json", "calldata.json", "blocks.json")
_ALWAYS = ("events.json", "updates.json")
_MANIFEST = "manifest.json"
_ARTIFACT = re.compile(r"artifacts/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_CHUNK = 1 << 20

_EVENTS = TypeAdapter(tuple[ChainEvent, ...])
_UPDATES = TypeAdapter(tuple[SignedUpdate, ...])
_LEAVES = TypeAdapter(Leaves)
_CALLDATA = TypeAdapter(dict[str, str])
_BLOCKS = TypeAdapter(Blocks)

# what zipfile raises for bytes that are no zip of ours
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, OSError, IndexError
)  # fmt: skip

T = TypeVar("T")


class BundleDamaged(UsageError):
    """A file that is no whole bundle: nothing can be said of the job."""


class Member(Wire):
    """A member as the manifest has it; `size` in bytes."""

    size: int = Field(ge=0)
    sha256: Digest


class Manifest(Wire):
    """What a bundle is of. `artifacts` are the files that the job's events name, in the bundle or not."""

    format: Literal["concilia-bundle/1"]
    origin: Literal["node", "services"]
    domain: Domain
    job: JobId
    artifacts: tuple[Digest, ...]
    members: dict[str, Member]


def write(
    evidence: Evidence, source: ArtifactSource | None, target: Path, progress: Callable[[float, str], None]
) -> int:
    """Write a bundle; returns how many artifacts are missing. All of it appears at once, or nothing.

    Raises `OSError`, and `Problem` where the artifacts' service does not answer.
    """
    partial = target.with_name(f"{target.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                missing = _fill(archive, evidence, source, progress)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return missing


def _fill(
    archive: zipfile.ZipFile, evidence: Evidence, source: ArtifactSource | None, progress: Callable[[float, str], None]
) -> int:
    members: dict[str, Member] = {}
    document = evidence.model_dump(mode="json", exclude={"leaves"})
    leaves = evidence.leaves_document()
    document["leaves"] = None if leaves is None else leaves.model_dump(mode="json")
    for name in _PARTS:
        if document[name.removesuffix(".json")] is not None:
            members[name] = _put(archive, name, [_json(document[name.removesuffix(".json")])])
    digests, models, missing = evidence.artifacts(), evidence.models(), 0
    wanted = [*digests] if source is not None else []
    for index, digest in enumerate(wanted):  # which becomes longer by what models name
        progress(index / len(wanted), f"file {index + 1} of {len(wanted)}")
        with tempfile.TemporaryDirectory(prefix="concilia-bundle-") as folder:
            try:
                assert source is not None, "else there is nothing to loop over"
                path = source.fetch(digest, Path(folder))
                file = path.open("rb")
            except (Problem, OSError) as error:
                if isinstance(error, Problem) and error.problem_status >= 500:
                    raise
                missing += digest not in evidence.without_artifact()
                continue
            with file:
                name = f"artifacts/{digest[:2]}/{digest}"
                members[name] = _put(archive, name, iter(lambda file=file: file.read(_CHUNK), b""))  # type: ignore[misc]
            if digest in models:
                wanted += sorted(_named_by(path) - set(wanted))
    manifest = Manifest(
        format=FORMAT,
        origin=evidence.origin,
        domain=evidence.domain,
        job=evidence.job,
        artifacts=tuple(digests),
        members=members,
    )
    _put(archive, _MANIFEST, [_json(manifest.model_dump(mode="json"))])
    return missing


def _named_by(model: Path) -> set[str]:
    """Digests of the files that a model's file names, without which it cannot be made again or used."""
    try:
        metadata = TensorFile.open(model).header.metadata
    except (MalformedFile, OSError):
        return set()  # the verifier says so
    return {metadata[key] for key in (TRUNK, STATE, NOISE) if re.fullmatch("[0-9a-f]{64}", metadata.get(key, ""))}


def _put(archive: zipfile.ZipFile, name: str, chunks: Any) -> Member:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, 0o100644 << 16
    hasher, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=name.startswith("artifacts/")) as member:
        for chunk in chunks:
            member.write(chunk)
            hasher.update(chunk)
            size += len(chunk)
    return Member(size=size, sha256=hasher.hexdigest())


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def is_bundle(where: str) -> bool:
    """Whether a file could be a bundle rather than a document of JSON."""
    try:
        with Path(where).open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


class Bundle:
    """A bundle opened for reading; a context manager. Raises `BundleDamaged`, and `UsageError` for no file.

    `findings` is what does not agree with the manifest. `source` is None where the bundle holds no artifact.
    """

    evidence: Evidence
    manifest: Manifest

    def __init__(self, path: Path) -> None:
        self.findings: list[Finding] = []
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise UsageError(f"{path} is missing") from error
        except (*_BROKEN, NotImplementedError) as error:
            raise BundleDamaged(f"the bundle is damaged: {path} is no zip ({error})") from error
        try:
            self._members = self._listed()
            self.manifest = self._part(_MANIFEST, TypeAdapter(Manifest), check=False)
            self._compare()
            self.evidence = self._evidence()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    @property
    def source(self) -> ArtifactSource | None:
        """The artifacts in the bundle."""
        return self if any(name.startswith("artifacts/") for name in self._members) else None

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `concilia_aggregator.verification.verifier.ArtifactSource`."""
        info = self._members.get(f"artifacts/{digest[:2]}/{digest}")
        if info is None:
            raise FileNotFoundError("the bundle does not hold it")
        target = folder / digest
        with _unbroken(info.filename, OSError), self._archive.open(info) as member, target.open("wb") as file:
            for chunk in _bounded(member, info.file_size):
                file.write(chunk)
        return target

    def _listed(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._archive.infolist()
        members = {info.filename: info for info in infos}
        if len(infos) > MOST_MEMBERS or len(members) != len(infos):
            raise BundleDamaged("the bundle is damaged: too many members, or two of one name")
        for name, info in members.items():
            artifact = _ARTIFACT.fullmatch(name)
            if artifact is None and name not in (*_PARTS, _MANIFEST):
                raise BundleDamaged(f"the bundle is damaged: {name[:100]!r} does not belong in it")
            if info.file_size > (MOST_JSON if artifact is None else MOST_ARTIFACT):
                raise BundleDamaged(f"the bundle is damaged: {name} claims {info.file_size} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise BundleDamaged(f"the bundle is damaged: {name} is neither stored nor deflated")
        if absent := {*_ALWAYS, _MANIFEST} - members.keys():
            raise BundleDamaged(f"the bundle is damaged: it lacks {', '.join(sorted(absent))}")
        return members

    def _compare(self) -> None:
        listed = self.manifest.members
        if listed.keys() != self._members.keys() - {_MANIFEST}:
            raise BundleDamaged("the bundle is damaged: its members are not those of its manifest")
        for name, said in listed.items():
            artifact = _ARTIFACT.fullmatch(name)
            if said.size != self._members[name].file_size:
                self._find(f"{name} has another size than the manifest says")
            if artifact is not None and said.sha256 != artifact[2]:
                self._find(f"the manifest has another digest of {name}", artifact[2])

    def _evidence(self) -> Evidence:
        has = self._members.keys()
        evidence = Evidence(
            origin=self.manifest.origin,
            domain=self.manifest.domain,
            job=self.manifest.job,
            events=self._part("events.json", _EVENTS),
            updates=self._part("updates.json", _UPDATES),
            leaves=self._leaves() if "leaves.json" in has else None,
            calldata=self._part("calldata.json", _CALLDATA) if "calldata.json" in has else None,
            blocks=self._part("blocks.json", _BLOCKS) if "blocks.json" in has else None,
        )
        if tuple(evidence.artifacts()) != self.manifest.artifacts:
            self._find("the manifest names other files than the events")
        return evidence

    def _leaves(self) -> tuple[Leaf, ...]:
        told = self._part("leaves.json", _LEAVES)
        if (told.job, told.domain) != (self.manifest.job, self.manifest.domain):
            self._find("leaves.json is of another job or contract")
        return told.leaves

    def _part(self, name: str, kind: TypeAdapter[T], *, check: bool = True) -> T:
        info = self._members[name]
        with _unbroken(name, BundleDamaged), self._archive.open(info) as member:
            data = b"".join(_bounded(member, info.file_size))
        if check and hashlib.sha256(data).hexdigest() != self.manifest.members[name].sha256:
            self._find(f"{name} has another digest than the manifest says")
        try:
            return kind.validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleDamaged(f"the bundle is damaged: {name} {where}: {first['msg']}") from error

    def _find(self, what: str, digest: str | None = None) -> None:
        self.findings.append(Finding(round=0, hospital=None, digest=digest, what=f"bundle: {what}"))


def _bounded(member: IO[bytes], size: int) -> Iterator[bytes]:
    """A member's bytes, no more than it claims."""
    left = size
    while chunk := member.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise zipfile.BadZipFile("more bytes than it claims")
        yield chunk


@contextlib.contextmanager
def _unbroken(name: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, NotImplementedError) as error:
        raise kind(f"the bundle is damaged: {name} cannot be read ({error})") from error
