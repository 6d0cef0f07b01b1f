"""What ops teams run around the deployment: the file for Swarm, bills of materials, the check before an upgrade."""

from __future__ import annotations

import json

from .conftest import ROOT, Stack


def test_swarm_takes_the_same_deployment(stack: Stack) -> None:
    stack.run("make", "stack")
    accepted = stack.run("docker", "stack", "config", "--compose-file", "var/stack.yml")
    for service in ("auth", "model", "aggregator", "aggregator-worker", "chain", "frontend", "client-node"):
        assert f"  {service}:\n" in accepted
    # A dollar sign that was escaped twice would reach the shell as its process id.
    assert '"$(cat /run/secrets/postgres)"' in accepted
    # Over the network between its machines services speak plain HTTP.
    assert accepted.count('encrypted: "true"') == 4


def test_bills_of_materials_name_what_is_inside(stack: Stack) -> None:
    stack.run("make", "sbom")
    for image, inside, torch in (("chain", "web3", False), ("model", "torchvision", True)):
        document = json.loads((ROOT / "var" / "sbom" / f"{image}.cdx.json").read_text())
        assert document["bomFormat"] == "CycloneDX"
        names = {item["name"] for item in document["components"]}
        assert inside in names
        assert ("torch" in names) == torch
        assert any(item["purl"].startswith("pkg:deb/debian/") for item in document["components"])
