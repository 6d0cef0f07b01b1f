"""What adapter files say of themselves and hold, and the whole model that one stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from concilia_kit.adapters import SCALE, Array, layout, merged
from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.adapter import ADAPTER, TRUNK, Adapter, rank_of
from concilia_kit.wire.models import InitialModelRequest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
DIGEST = "ab" * 32
NETWORK = {
    "stem.weight": TensorSpec(F32, (16, 3, 3, 3)),
    "stem.bias": TensorSpec(F32, (16,)),
    "norm.weight": TensorSpec(F32, (16,)),
    "norm.bias": TensorSpec(F32, (16,)),
    "norm.running_var": TensorSpec(F32, (16,)),
    "norm.num_batches_tracked": TensorSpec(I64, ()),
    "deep.weight": TensorSpec(F32, (16, 1, 3, 3)),
    "block.layer_scale": TensorSpec(F32, (16, 1, 1)),
    "squeeze.weight": TensorSpec(F32, (2, 16, 1, 1)),
    "wide.weight": TensorSpec(F32, (32, 16)),
    "wide.bias": TensorSpec(F32, (32,)),
    "a.head.weight": TensorSpec(F32, (7, 32)),
    "a.head.bias": TensorSpec(F32, (7,)),
}
"""In its own order, in which the head's name is not the last: a file's order says nothing."""
NORMS = {
    *("norm.weight", "norm.bias", "norm.running_var", "norm.num_batches_tracked", "block.layer_scale"),
    *("a.head.weight", "a.head.bias"),
}


def drawn(specs: dict[str, TensorSpec], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=spec.shape)).astype(spec.dtype) for name, spec in specs.items()}


def test_norms_and_head_are_what_is_neither_kernel_nor_its_bias() -> None:
    assert layout(NETWORK, "norms") == {name: NETWORK[name] for name in NETWORK if name in NORMS}


def test_factors_of_every_kernel_but_the_head_and_depthwise_ones() -> None:
    found = layout(NETWORK, "lora:4")
    assert {name: spec for name, spec in found.items() if name in NORMS} == layout(NETWORK, "norms")
    assert {name: spec.shape for name, spec in found.items() if name not in NORMS} == {
        "stem.lora_a": (4, 27),
        "stem.lora_b": (16, 4),
        "squeeze.weight": (2, 16, 1, 1),  # its factors would have 72 elements, and it has 32
        "wide.lora_a": (4, 16),
        "wide.lora_b": (32, 4),
    }


@given(st.integers(1, 64))
def test_an_adapter_never_holds_more_than_the_network(rank: int) -> None:
    size = sum(spec.size for spec in layout(NETWORK, f"lora:{rank}").values())
    assert size <= sum(spec.size for spec in NETWORK.values())


@given(st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_a_merged_kernel_is_the_trunks_and_what_the_factors_add(rank: int, seed: int) -> None:
    trunk, adapter = drawn(NETWORK, seed), drawn(layout(NETWORK, f"lora:{rank}"), seed + 1)
    whole = merged(trunk, adapter)
    assert list(whole) == list(NETWORK)
    for name, tensor in whole.items():
        layer = name.removesuffix(".weight")
        assert (tensor.dtype, tensor.shape) == (NETWORK[name].dtype, NETWORK[name].shape)
        if name in adapter:
            assert np.array_equal(tensor, adapter[name])
        elif f"{layer}.lora_a" in adapter and name.endswith(".weight"):
            a, b = adapter[f"{layer}.lora_a"], adapter[f"{layer}.lora_b"]
            for row in range(tensor.shape[0]):  # element by element, exactly
                for column in range(a.shape[1]):
                    terms = [float(b[row, r]) * float(a[r, column]) for r in range(rank)]
                    wanted = float(trunk[name][row].reshape(-1)[column]) + SCALE * math.fsum(terms)
                    assert tensor[row].reshape(-1)[column] == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        else:
            assert np.array_equal(tensor, trunk[name])


@given(st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_with_zeros_in_b_it_is_the_trunk_itself(rank: int, seed: int) -> None:
    trunk = drawn(NETWORK, seed)
    drawn_ones = drawn(layout(NETWORK, f"lora:{rank}"), seed + 1)
    adapter = {name: trunk.get(name, tensor) for name, tensor in drawn_ones.items()}
    adapter |= {name: np.zeros_like(tensor) for name, tensor in adapter.items() if name.endswith(".lora_b")}
    assert all(np.array_equal(tensor, trunk[name]) for name, tensor in merged(trunk, adapter).items())


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("elsewhere.lora_a", np.zeros((4, 27), np.float32), "goes nowhere"),
        ("extra", np.zeros(1, np.float32), "goes nowhere"),
        ("norm.weight", np.zeros(15, np.float32), "another shape"),
        ("stem.lora_b", np.zeros((15, 4), np.float32), "do not have its shape"),
        ("stem.lora_a", np.zeros((4, 26), np.float32), "do not have its shape"),
        ("stem.lora_a", np.zeros(4, np.float32), "do not have its shape"),
    ],
)
def test_what_does_not_go_together_is_not_merged(name: str, tensor: Array, said: str) -> None:
    adapter = drawn(layout(NETWORK, "lora:4"), 1)
    adapter[name] = tensor
    with pytest.raises(ValueError, match=said):
        merged(drawn(NETWORK, 0), adapter)


def test_half_a_pair_of_factors_goes_nowhere() -> None:
    adapter = drawn(layout(NETWORK, "lora:4"), 1)
    del adapter["stem.lora_b"]
    with pytest.raises(ValueError, match=r"stem\.lora_a goes nowhere"):
        merged(drawn(NETWORK, 0), adapter)


def test_kinds() -> None:
    assert [rank_of(kind) for kind in ("norms", "lora:1", "lora:8", "lora:64")] == [0, 1, 8, 64]
    for text in ("", "lora", "lora:", "lora:0", "lora:65", "lora:08", "lora:-1", "lora:8\n", "Norms", "lora:8 "):
        with pytest.raises(ValueError, match="no kind of adapter"):
            rank_of(text)
        with pytest.raises(ValidationError):
            InitialModelRequest(architecture="resnet18", weights="random", adapter=text)


def test_a_request_without_an_adapter_is_what_it_was() -> None:
    plain = InitialModelRequest(architecture="resnet18", weights="random").model_dump(mode="json")
    assert plain == {"architecture": "resnet18", "weights": "random", "file": None, "seed": 0}


def test_what_a_file_says() -> None:
    said = Adapter(DIGEST, "lora:8")
    assert Adapter.of({"origin": "here", **said.metadata()}) == said
    assert Adapter.of({"origin": "here"}) is None


@pytest.mark.parametrize(
    "metadata",
    [
        {TRUNK: DIGEST},
        {ADAPTER: "norms"},
        {TRUNK: DIGEST.upper(), ADAPTER: "norms"},
        {TRUNK: DIGEST[1:], ADAPTER: "norms"},
        {TRUNK: DIGEST + "\n", ADAPTER: "norms"},
        {TRUNK: "../" * 21 + "a", ADAPTER: "norms"},
        {TRUNK: DIGEST, ADAPTER: "lora:65"},
        {TRUNK: "", ADAPTER: ""},
    ],
)
def test_what_a_file_cannot_say(metadata: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="adapter"):
        Adapter.of(metadata)
