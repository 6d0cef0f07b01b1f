"""The model service as the aggregator asks it: a double that tells of artifacts by what it was given."""

from __future__ import annotations

from pathlib import Path

import httpx
from concilia_aggregator.artifacts import RemoteArtifacts
from concilia_kit.wire.models import Artifact

OWNER = "0x" + "00" * 20
WHOLE, ADAPTER, LOST = "a" * 64, "b" * 64, "c" * 64


def test_an_adapter_is_there_where_its_trunk_is(tmp_path: Path) -> None:
    stored = {WHOLE: None, ADAPTER: WHOLE, LOST: "d" * 64}
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        digest = request.url.path.split("/")[-2]
        asked.append(digest)
        if digest not in stored:
            return httpx.Response(404, json={"code": "artifact_not_found", "status": 404, "detail": "no"})
        trunk = stored[digest]
        made = Artifact(digest=digest, size=1, owner=OWNER, tensors=1, trunk=trunk, adapter=trunk and "norms")
        return httpx.Response(200, content=made.model_dump_json())

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://model") as client:
        artifacts = RemoteArtifacts(client, tmp_path)
        assert [artifacts.exists(each) for each in (WHOLE, ADAPTER, LOST, "d" * 64)] == [True, True, False, False]
    assert asked == [WHOLE, ADAPTER, WHOLE, LOST, "d" * 64, "d" * 64]
