"""What every container may not do, and which secrets it sees, read from the compose files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILES = ("docker-compose.yml", "deploy/hospital/compose.yml")


def services(file: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / file).read_text())["services"]
    return found


def config(file: str, name: str) -> str:
    """The content of a file that a container is given."""
    configs = yaml.safe_load((ROOT / file).read_text())["configs"]
    return (ROOT / file).parent.joinpath(configs[name]["file"]).read_text()


@pytest.mark.parametrize("file", FILES)
def test_every_container_is_confined(file: str) -> None:
    for name, service in services(file).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service["logging"]["options"]["max-size"], name
        assert not {"privileged", "network_mode", "pid", "devices", "cap_add"} & set(service), name


@pytest.mark.parametrize("file", FILES)
def test_a_container_is_given_the_secrets_it_reads_and_no_other(file: str) -> None:
    for name, service in services(file).items():
        healthcheck = service.get("healthcheck", {}).get("test", "")
        parts = (service.get("environment"), service.get("command"), service.get("entrypoint"), healthcheck)
        text = " ".join(map(str, parts))
        text += "".join(config(file, item["source"]) for item in service.get("configs", ()))
        if name == "frontend":
            text += (ROOT / "deploy/frontend/nginx.conf").read_text()  # in its image
        read = set(re.findall(r"/run/secrets/(\w[\w.-]*(?:\$\w+)?)", text))
        if "/run/secrets/$name" in text:  # a script that reads them in turn
            (names,) = re.findall(r"for name in (.*); do", text)
            read |= set(names.split())
        if "db_$NAME" in read:  # the script that makes a database of each service
            read = read - {"db_$NAME"} | {"db_model", "db_aggregator", "db_chain"}
        assert read == set(service.get("secrets", ())), name


def test_networks_keep_hospitals_from_everything_but_the_front_door_and_the_broker() -> None:
    networks = {name: set(service["networks"]) for name, service in services("docker-compose.yml").items()}
    assert networks["client-node"] == {"edge"}
    beside = {name for name, joined in networks.items() if "edge" in joined}
    assert beside - {"client-node", "enrol", "prometheus"} == {"frontend", "redis"}
    assert {name for name, joined in networks.items() if "ledger" in joined} == {"ganache", "funding", "chain"}
    assert networks["postgres"] == {"database"}
    assert not {"frontend", "auth", "redis", "client-node"} & {
        n for n, joined in networks.items() if "database" in joined
    }
