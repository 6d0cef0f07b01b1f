"""What was signed and stored before there were encodings has the same digests with them."""

from __future__ import annotations

import json

import pytest
from concilia_kit import digests
from concilia_kit.wire.encoding import Encoded, Encoding
from concilia_kit.wire.jobs import JobManifest, JobSpec
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.training import TrainTask, UpdateMetrics
from pydantic import ValidationError

# As the version before encodings wrote it, member by member.
METRICS = {
    "loss": 1.25,
    "accuracy": 0.5,
    "images": 10,
    "lesions": 8,
    "skipped_images": 0,
    "epochs": 1,
    "seconds_download": 0.1,
    "seconds_training": 2.0,
    "seconds_upload": 0.2,
    "bytes_download": 100,
    "bytes_upload": 100,
}
CANONICAL = (
    '{"accuracy":0.5,"bytes_download":100,"bytes_upload":100,"epochs":1,"images":10,"lesions":8,"loss":1.25,'
    '"seconds_download":0.1,"seconds_training":2,"seconds_upload":0.2,"skipped_images":0}'
)


def test_plain_metrics_are_signed_as_they_always_were() -> None:
    import hashlib

    metrics = UpdateMetrics.model_validate(METRICS)
    assert metrics.model_dump(mode="json") == METRICS
    assert json.loads(metrics.model_dump_json()) == METRICS
    assert digests.of_json(metrics.model_dump(mode="json")) == hashlib.sha256(CANONICAL.encode()).hexdigest()
    assert "encoded" not in UpdateMetrics.model_json_schema(mode="serialization")["required"]


def test_encoded_metrics_sign_the_encoding_its_parameters_and_bytes() -> None:
    encoded = Encoded(encoding=Encoding.parse("topk:0.01+zstd"), bytes=12, bytes_plain=400, seconds=0.5)
    metrics = UpdateMetrics.model_validate(METRICS | {"encoded": encoded.model_dump()})
    assert metrics.model_dump(mode="json") == METRICS | {
        "encoded": {
            "encoding": {"name": "topk", "share": 0.01, "zstd": True},
            "bytes": 12,
            "bytes_plain": 400,
            "seconds": 0.5,
        }
    }
    assert UpdateMetrics.model_validate_json(metrics.model_dump_json()) == metrics
    others = [
        metrics.model_copy(update={"encoded": encoded.model_copy(update=change)})
        for change in ({"bytes": 13}, {"encoding": Encoding.parse("topk:0.02+zstd")}, {})
    ]
    found = [digests.of_json(each.model_dump(mode="json")) for each in (metrics, *others)]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_a_manifest_from_before_keeps_its_id() -> None:
    spec = JobSpec(name="old", initial="0" * 64).model_dump(mode="json")
    del spec["encoding"]
    document = {
        "spec": spec,
        "created_by": "0x" + "11" * 20,
        "created_at": "2026-11-24T00:00:00+00:00",
        "code": "concilia-aggregator 0.1.0",
        "salt": "0" * 32,
    }
    manifest = JobManifest.model_validate_json(json.dumps(document))
    assert manifest.id() == digests.of_json(document)
    assert JobSpec.model_validate(manifest.spec).encoding == Encoding()


def test_a_task_for_plain_updates_reads_as_it_did() -> None:
    fields = {"job": "a" * 64, "round": 1, "architecture": "resnet18", "base": "b" * 64, "seed": 1, "deadline": 9}
    task = TrainTask.model_validate(fields | {"local": {}})
    assert "encoding" not in task.model_dump(mode="json")
    encoded = task.model_copy(update={"encoding": Encoding.parse("int8+zstd")})
    assert TrainTask.model_validate(encoded.model_dump(mode="json")) == encoded


def test_a_node_that_says_nothing_can_none() -> None:
    fields = {
        "site": "ward",
        "source": "x",
        "training_images": [1] * 7,
        "held_out_images": [1] * 7,
        "training_lesions": 1,
        "held_out_lesions": 1,
        "overlapping_lesions": 0,
        "skipped_images": 0,
    }
    assert NodeRegistration.model_validate(fields).encodings == ("none",)
    assert (
        NodeRegistration.model_validate(fields | {"encodings": ["none", "of-tomorrow"]}).encodings[1] == "of-tomorrow"
    )
    with pytest.raises(ValidationError):
        NodeRegistration.model_validate(fields | {"encodings": ["<b>"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int9", "is no encoding; there are none, float16, int8 and topk:0.01"),
        ("topk", "topk, and no other encoding, has a share"),
        ("int8:0.1", "topk, and no other encoding, has a share"),
        ("topk:0.9", "share: Input should be less than or equal to 0.5"),
        ("topk:-", "share: '-' is no number"),
        ("", "is no encoding"),
    ],
)
def test_a_misspelt_encoding_is_told_how_to_spell_it(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Encoding.parse(text)
