"""Encodings of updates: what is decoded is what was meant, and hostile bytes cost no more than a block."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from concilia_kit import encodings, tensorfile
from concilia_kit.encodings import METADATA, NotEncodable, encoding_of
from concilia_kit.encodings.int8 import elements_a_scale
from concilia_kit.encodings.topk import BLOCK, count_of, from_gaps, to_gaps
from concilia_kit.encodings.zstd import PIECE
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.encoding import ABILITIES, Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

ALL = [
    f"{name}{zstd}"
    for name in ("none", "float16", "int8", "topk:0.01", "topk:0.001", "topk:0.5")
    for zstd in ("", "+zstd")
]
ENCODED = [text for text in ALL if text != "none"]
Tensors = dict[str, npt.NDArray[Any]]


def network(seed: int = 0) -> Tensors:
    """Tensors of the kinds a network has, and of every length that is an edge: of blocks, pieces, scales."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(0, 0.05, shape).astype(np.float32)

    return {
        "conv.weight": normal(16, 3, 3, 3),
        "depthwise.weight": normal(20, 1, 3, 3),
        "fc.weight": normal(7, 33000),
        "long": normal(BLOCK + 5000),
        "bn.weight": normal(16) + 1,
        "bn.running_var": np.abs(normal(16)),
        "bn.num_batches_tracked": np.array(3, np.int64),
        "half": normal(5).astype(np.float16),
        "double": normal(3, 2).astype(np.float64),
        "mask": np.array([True, False]),
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(0.5, np.float32),
    }


def trained(base: Tensors, seed: int = 1, step: float = 1e-3) -> Tensors:
    rng = np.random.default_rng(seed)

    def moved(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not np.issubdtype(tensor.dtype, np.floating):
            return np.asarray(tensor + 1, tensor.dtype)
        return (tensor + rng.normal(0, step, tensor.shape) * rng.lognormal(0, 1, tensor.shape)).astype(tensor.dtype)

    return {name: moved(tensor) for name, tensor in base.items()}


def kept(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> TensorFile:
    tensorfile.write(path, tensors)
    return TensorFile.open(path)


@pytest.fixture
def base(tmp_path: Path) -> TensorFile:
    return kept(tmp_path / "base", network())


def decoded(update: Path, base: TensorFile, block: int = 1 << 30) -> Tensors:
    """All of an update, read in blocks."""
    reader = encodings.reader(TensorFile.open(update), base)
    found = {}
    for name, spec in reader.tensors.items():
        parts = [reader.block(name, start, start + block) for start in range(0, max(spec.size, 1), block)]
        assert all(part.ndim == 1 and part.dtype == spec.dtype for part in parts)
        found[name] = np.concatenate(parts).reshape(spec.shape)
    return found


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


@pytest.mark.parametrize("text", ALL)
def test_an_update_comes_back_as_a_model_of_the_bases_form(text: str, base: TensorFile, tmp_path: Path) -> None:
    wanted = trained(network())
    written = encodings.encode(tmp_path / "update", Encoding.parse(text), wanted, base, None, tmp_path / "left")
    data = (tmp_path / "update").read_bytes()
    assert (written.digest, written.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert written.size_plain == sum(tensor.nbytes for tensor in wanted.values())
    assert encoding_of(TensorFile.open(tmp_path / "update")) == Encoding.parse(text)
    assert load_file(tmp_path / "update")  # the reference implementation reads it
    found = decoded(tmp_path / "update", base)
    start = network()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.dtype != np.float32 or text.startswith("none"):
            assert found[name].tobytes() == tensor.tobytes()
        elif tensor.size:
            moved = np.abs(tensor.astype(np.float64) - start[name])
            off = np.abs(tensor.astype(np.float64) - found[name])
            within = {"float16": 2**-11 * moved.max(), "int8": moved.max() / 127}.get(
                text.partition("+")[0], moved.max()
            )
            assert off.max() <= within + 1e-7
    assert same(found, decoded(tmp_path / "update", base, 1000))
    assert same(found, decoded(tmp_path / "update", base, BLOCK))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["none", "float16", "int8", "topk:0.01"])
def test_zstd_changes_no_bit_and_saves_bytes(name: str, base: TensorFile, tmp_path: Path) -> None:
    new = trained(network())
    plain = encodings.encode(tmp_path / "one", Encoding.parse(name), new, base)
    packed = encodings.encode(tmp_path / "two", Encoding.parse(f"{name}+zstd"), new, base)
    assert same(decoded(tmp_path / "one", base), decoded(tmp_path / "two", base))
    assert packed.size < plain.size


@pytest.mark.parametrize("text", ENCODED)
def test_equal_tensors_give_equal_bytes_and_what_is_left_is_what_is_missing(
    text: str, base: TensorFile, tmp_path: Path
) -> None:
    encoding, new = Encoding.parse(text), trained(network())
    rng = np.random.default_rng(5)
    lossy = {name: tensor for name, tensor in new.items() if tensor.dtype == np.float32}
    before = kept(tmp_path / "before", {n: rng.normal(0, 1e-4, t.shape).astype(np.float32) for n, t in lossy.items()})
    digests = {
        encodings.encode(tmp_path / f"update{turn}", encoding, new, base, before, tmp_path / f"left{turn}").digest
        for turn in range(2)
    }
    assert len(digests) == 1
    if text.startswith("none"):
        return
    left = TensorFile.open(tmp_path / "left0")
    assert set(left) == set(lossy)
    found = decoded(tmp_path / "update0", base)
    for name in lossy:
        assert left.tensor(name).tobytes() == ((new[name] - found[name]) + before.tensor(name)).tobytes()


def test_int8_is_what_its_formula_says(base: TensorFile, tmp_path: Path) -> None:
    """Against the formula, element by element in Python's own numbers."""
    new = trained(network())
    encodings.encode(tmp_path / "update", Encoding.parse("int8"), new, base)
    found = decoded(tmp_path / "update", base)
    for name in ("conv.weight", "depthwise.weight"):
        shape = new[name].shape
        start, wanted, got = base.flat(name), new[name].reshape(-1), found[name].reshape(-1)
        channel = int(np.prod(shape[1:]))
        group = next(count * channel for count in range(1, 100) if count * channel >= 64)
        assert elements_a_scale(shape) == group
        for first in range(0, wanted.size, group):
            part = range(first, min(first + group, wanted.size))
            deltas = [np.float32(wanted[i] - start[i]) for i in part]
            scale = np.float32(max(abs(delta) for delta in deltas) / np.float32(127))
            for i, delta in zip(part, deltas, strict=True):
                step = round(float(np.float32(delta / scale)))
                assert got[i] == np.float32(start[i] + np.float32(np.float32(step) * scale))


def test_float16_keeps_eleven_bits_of_differences_far_below_the_smallest_half(tmp_path: Path) -> None:
    base = kept(tmp_path / "base", {"w": np.zeros((8, 64), np.float32)})
    new = (np.random.default_rng(0).uniform(0.5, 1, (8, 64)) * 1e-9).astype(np.float32)
    encodings.encode(tmp_path / "update", Encoding.parse("float16"), {"w": new}, base)
    assert np.abs(decoded(tmp_path / "update", base)["w"] / new - 1).max() <= 2**-11


@given(
    delta=hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    text=st.sampled_from(["float16", "int8", "topk:0.1"]),
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # slow is a busy machine
)
def test_any_finite_difference_comes_back_finite_and_within_a_step(
    delta: npt.NDArray[np.float32], text: str, tmp_path: Path
) -> None:
    new = {"w": np.stack([delta, delta[::-1]])}
    base = kept(tmp_path / "base", {"w": np.zeros_like(new["w"])})
    encodings.encode(tmp_path / "update", Encoding.parse(text), new, base, None, tmp_path / "left")
    found = decoded(tmp_path / "update", base)["w"]
    assert np.isfinite(found).all()
    largest = float(np.abs(delta).max())
    if not text.startswith("topk"):
        share = {"float16": 2**-11, "int8": 0.5 / 127}[text]
        assert np.abs(new["w"].astype(np.float64) - found).max() <= 1.001 * share * largest + 2e-45 * 127
    assert TensorFile.open(tmp_path / "left").tensor("w").tobytes() == (new["w"] - found).tobytes()


@given(places=st.sets(st.integers(0, BLOCK - 1), max_size=200).map(sorted), dtype=st.sampled_from(["u1", "<u2"]))
@settings(max_examples=200, deadline=None)
def test_places_survive_their_gaps(places: list[int], dtype: str) -> None:
    gaps = to_gaps(np.array(places, np.int64), np.dtype(dtype))
    assert gaps.dtype == dtype
    assert from_gaps(gaps).tolist() == places


@pytest.mark.parametrize("text", ["topk:0.01", "topk:0.001", "topk:0.5"])
def test_top_k_sends_the_largest_and_no_others(text: str, base: TensorFile, tmp_path: Path) -> None:
    new = trained(network())
    encodings.encode(tmp_path / "update", Encoding.parse(text), new, base)
    found = decoded(tmp_path / "update", base)
    for name in ("conv.weight", "fc.weight", "long"):
        delta = np.abs(new[name].reshape(-1) - base.flat(name))
        sent = np.flatnonzero(found[name].reshape(-1) != base.flat(name))
        count = count_of(Encoding.parse(text).share or 0, delta.size)
        order = np.argsort(-delta, kind="stable")
        assert len(sent) == count
        assert delta[sent].min() >= delta[order[count - 1]]


@pytest.mark.parametrize(("text", "bound"), [("int8", 0.27), ("int8+zstd", 0.25), ("topk:0.01+zstd", 0.05)])
def test_bytes_are_what_they_are_for(text: str, bound: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    start = {f"{i}.weight": rng.normal(0, 1, (64, 64, 3, 3)).astype(np.float32) for i in range(3)}
    base = kept(tmp_path / "base", start)
    written = encodings.encode(tmp_path / "update", Encoding.parse(text), trained(start), base)
    assert written.size <= bound * written.size_plain


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["float16", "int8", "topk:0.01"])
def test_what_is_not_finite_is_not_encoded_and_leaves_no_file(
    bad: float, text: str, base: TensorFile, tmp_path: Path
) -> None:
    new = trained(network())
    new["fc.weight"][3, 5] = bad
    with pytest.raises(NotEncodable, match="not finite"):
        encodings.encode(tmp_path / "update", Encoding.parse(text), new, base, None, tmp_path / "left")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("text", ["none", "int8"])
def test_tensors_of_another_model_are_not_encoded(text: str, base: TensorFile, tmp_path: Path) -> None:
    for change in ({"fc.weight": np.zeros((7, 5), np.float32)}, {"more": np.zeros(3, np.float32)}):
        with pytest.raises(NotEncodable, match="not the base's"):
            encodings.encode(tmp_path / "update", Encoding.parse(text), trained(network()) | change, base)


def test_threads_read_the_same(base: TensorFile, tmp_path: Path) -> None:
    for text in ("int8+zstd", "topk:0.01+zstd"):
        encodings.encode(tmp_path / "update", Encoding.parse(text), trained(network()), base)
        reader = encodings.reader(TensorFile.open(tmp_path / "update"), base)
        whole = decoded(tmp_path / "update", base)

        def read(seed: int, reader: Any = reader, whole: Tensors = whole) -> bool:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                name = str(rng.choice(["fc.weight", "long", "conv.weight"]))
                start, stop = sorted(rng.integers(0, whole[name].size + 10, 2))
                found = reader.block(name, int(start), int(stop))
                if found.tobytes() != whole[name].reshape(-1)[start:stop].tobytes():
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(8)))


# --------------------------------------------------------------------------------------------------- error feedback


@pytest.mark.parametrize(("text", "loud"), [("int8", 4.0), ("topk:0.05", 0.1)])
def test_error_feedback_converges_where_encoding_alone_stalls(text: str, loud: float, tmp_path: Path) -> None:
    """Gradient descent on ||w - goal||^2, ten coordinates of which are so loud that no step of the others is sent."""
    goal = np.random.default_rng(0).uniform(-1, 1, (1, 200)).astype(np.float32)

    def distance(feedback: bool) -> float:
        model = np.zeros((1, 200), np.float32)
        before: TensorFile | None = None
        for number in range(400):
            base = kept(tmp_path / "base", {"w": model})
            step = np.float32(0.01) * (goal - model)
            step[0, :10] += np.float32(loud * (-1) ** number)
            left = tmp_path / f"left{number % 2}" if feedback else None
            encodings.encode(tmp_path / "update", Encoding.parse(text), {"w": model + step}, base, before, left)
            before = TensorFile.open(left) if left else None
            model = decoded(tmp_path / "update", base)["w"]
        return float(np.abs(model - goal)[0, 10:].mean())

    alone = distance(feedback=False)
    assert alone > 0.9 * float(np.abs(goal)[0, 10:].mean())  # where it began
    assert distance(feedback=True) < alone / 4


# ------------------------------------------------------------------------------------------------------ hostile files


def rewritten(source: Path, target: Path, change: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """A file with some tensors replaced (None: removed), and other metadata where it is given."""
    file = TensorFile.open(source)
    tensors = {name: file.tensor(name) for name in file} | change
    said = dict(file.header.metadata) if metadata is None else metadata
    tensorfile.write(target, {name: tensor for name, tensor in tensors.items() if tensor is not None}, said)
    return target


@pytest.mark.parametrize(
    "text", ["", "none", "int9", "topk", "topk:0", "topk:0.9", "int8:0.1", "int8+gzip", "topk:1e-2", "INT8", "topk:nan"]
)
def test_encodings_that_are_none_are_malformed(text: str, base: TensorFile, tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "update", network(), {METADATA: text})
    with pytest.raises(MalformedFile, match="names"):
        encodings.reader(TensorFile.open(tmp_path / "update"), base)


@pytest.mark.parametrize("text", ENCODED)
def test_files_that_do_not_hold_what_their_encoding_needs_are_malformed(
    text: str, base: TensorFile, tmp_path: Path
) -> None:
    encodings.encode(tmp_path / "update", Encoding.parse(text), trained(network()), base)
    stored = TensorFile.open(tmp_path / "update")
    for name in stored:
        tensor = np.array(stored.tensor(name))
        for change in (None, tensor.reshape(-1)[:-1].copy(), tensor.astype(np.float64) + 1, tensor[None]):
            if change is not None and (change.dtype, change.shape) == (tensor.dtype, tensor.shape):
                continue
            rewritten(tmp_path / "update", tmp_path / "bad", {name: change})
            with pytest.raises(MalformedFile):
                decoded(tmp_path / "bad", base)
    rewritten(tmp_path / "update", tmp_path / "bad", {"zzz": np.zeros(3, np.float32)})
    with pytest.raises(MalformedFile, match="foreign 'zzz'"):
        encodings.reader(TensorFile.open(tmp_path / "bad"), base)


def test_an_update_of_another_base_is_malformed(base: TensorFile, tmp_path: Path) -> None:
    other = kept(tmp_path / "other", network() | {"fc.weight": np.zeros((3, 9), np.float32)})
    encodings.encode(tmp_path / "update", Encoding.parse("int8"), trained(network()), base)
    with pytest.raises(MalformedFile, match="where its encoding has"):
        encodings.reader(TensorFile.open(tmp_path / "update"), other)


def _frame(content: bytes, said: int) -> bytes:
    """A frame of some content that says it has another size (RFC 8878, 3.1.1.1)."""
    made = zstandard.ZstdCompressor().compress(content)
    is_single, size_flag = made[4] >> 5 & 1, made[4] >> 6
    blocks = made[5 + (not is_single) + {0: is_single, 1: 2, 2: 4, 3: 8}[size_flag] :]
    window = bytes([(17 - 10) << 3])  # 128 KB
    return made[:4] + b"\xc0" + window + struct.pack("<Q", said) + blocks


def bombs() -> Iterator[tuple[str, bytes]]:
    zeros = bytes(64 * 2**20)
    yield "says what it has, far too much", zstandard.ZstdCompressor().compress(zeros)
    yield "says a piece, has far more", _frame(zeros, PIECE)
    yield "says an exabyte", _frame(bytes(PIECE), 2**60)
    yield "says a piece, has less", _frame(bytes(PIECE - 1), PIECE)
    yield "says nothing", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(PIECE))
    stream = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    ).compressobj()
    yield "wants a window of 128 MB", stream.compress(bytes(PIECE)) + stream.flush()
    yield "is two frames", 2 * zstandard.ZstdCompressor().compress(bytes(PIECE // 2))
    yield "has bytes after it", zstandard.ZstdCompressor().compress(bytes(PIECE)) + b"x"
    yield "is skippable", b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"1234"
    yield "is cut off", zstandard.ZstdCompressor().compress(np.random.default_rng(0).bytes(PIECE))[:-9]
    yield "is no frame", b"nonsense"


@pytest.mark.parametrize(("what", "frame"), list(bombs()), ids=[what for what, _ in bombs()])
def test_frames_expand_to_their_piece_and_no_further(
    what: str, frame: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = kept(tmp_path / "base", {"w": np.zeros((4, PIECE), np.float32)})
    encodings.encode(tmp_path / "update", Encoding.parse("int8+zstd"), {"w": np.ones((4, PIECE), np.float32)}, base)
    stored = TensorFile.open(tmp_path / "update")
    ends = stored.tensor("w##frames").copy()
    data = frame + stored.tensor("w").tobytes()[ends[1] :]
    ends[1:] += len(frame) - ends[1]
    change = {"w": np.frombuffer(data, np.uint8), "w##frames": ends}
    rewritten(tmp_path / "update", tmp_path / "bad", change)
    reader = encodings.reader(TensorFile.open(tmp_path / "bad"), base)
    with pytest.raises(MalformedFile, match="frame"):
        reader.block("w", 0, 10)
    assert reader.block("w", PIECE, PIECE + 10).tolist() == [1.0] * 10  # the others are sound


def test_a_frame_needs_no_more_memory_than_its_piece(tmp_path: Path) -> None:
    """Measured: a file of 64 MB of zeros in some kilobytes, in a frame that says it is a piece."""
    import tracemalloc

    base = kept(tmp_path / "base", {"w": np.zeros((1, PIECE), np.float32)})
    frame = np.frombuffer(_frame(bytes(64 * 2**20), PIECE), np.uint8)
    tensors = {"w": frame, "w##frames": np.array([0, frame.size], np.int64), "#scales": np.ones(1, np.float32)}
    tensorfile.write(tmp_path / "bad", tensors, {METADATA: "int8+zstd"})
    reader = encodings.reader(TensorFile.open(tmp_path / "bad"), base)
    tracemalloc.start()
    with pytest.raises(MalformedFile):
        reader.block("w", 0, 10)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * PIECE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("w#blocks", lambda t: t[::-1].copy()),
        ("w#blocks", lambda t: t + np.array([0, 1])),
        ("w#blocks", lambda t: np.where(t == t[1, 0], 2**62, t)),
        ("w#blocks", lambda t: np.where(t == t[-1, 0], -5, t)),
        ("w#blocks", lambda t: np.where(t == t[1, 1], t[1, 1] + 1, t)),
        ("w#blocks", lambda t: np.where(t == t[1, 0], t[1, 0] - 1, t)),
        ("w#places", lambda t: np.full_like(t, 254)),
        ("w#places", lambda t: np.full_like(t, 255)),
    ],
)
def test_sparse_files_that_do_not_add_up_are_malformed(name: str, change: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = kept(tmp_path / "base", {"w": np.zeros((2, BLOCK + 100), np.float32)})
    new = {"w": rng.normal(0, 1, (2, BLOCK + 100)).astype(np.float32)}
    encodings.encode(tmp_path / "update", Encoding.parse("topk:0.01"), new, base)
    tensor = TensorFile.open(tmp_path / "update").tensor(name)
    changed = change(tensor)
    assert not np.array_equal(changed, tensor)
    rewritten(tmp_path / "update", tmp_path / "bad", {name: changed})
    with pytest.raises(MalformedFile):
        decoded(tmp_path / "bad", base)


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_bytes_is_read_or_malformed(data: st.DataObject, tmp_path: Path) -> None:
    """Flipped, cut, inserted bytes anywhere: a model of the base's form comes out, or `MalformedFile`."""
    text = data.draw(st.sampled_from(ENCODED))
    start = {"w": np.arange(6000, dtype=np.float32).reshape(6, 1000), "b": np.ones(3, np.float32), "n": np.array(1)}
    base = kept(tmp_path / "base", start)
    encodings.encode(tmp_path / "update", Encoding.parse(text), trained(start), base)
    raw = bytearray((tmp_path / "update").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "set"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                raw[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=16))
            case _:
                del raw[at : at + data.draw(st.integers(1, 64))]
        raw = raw or bytearray(b"\0")
    (tmp_path / "bad").write_bytes(bytes(raw))
    try:
        found = decoded(tmp_path / "bad", base, 700)
    except MalformedFile:
        return
    if encoding_of(TensorFile.open(tmp_path / "bad")).plain:
        return  # the metadata went: a plain file, whose names and shapes screening looks at
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in start.items()}


def test_what_is_announced_is_what_there_is() -> None:
    for text in ALL:
        assert Encoding.parse(text).needs <= set(ABILITIES)
        assert str(Encoding.parse(text)) == text
        assert Encoding.model_validate(json.loads(Encoding.parse(text).model_dump_json())) == Encoding.parse(text)
