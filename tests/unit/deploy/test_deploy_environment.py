"""The compose files, `.env.example` and the settings classes agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from concilia_aggregator.settings import AggregatorSettings
from concilia_auth.settings import AuthSettings
from concilia_chain.settings import ChainSettings
from concilia_client_node.claim import ClaimSettings
from concilia_client_node.settings import NodeSettings
from concilia_model.settings import ModelSettings
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[3]
SETTINGS: dict[str, type[BaseSettings]] = {
    str(kind.model_config["env_prefix"]): kind
    for kind in (AuthSettings, ModelSettings, AggregatorSettings, ChainSettings, NodeSettings, ClaimSettings)
}
FILES = ("docker-compose.yml", "deploy/hospital/compose.yml")
# Used by the scripts around compose, not by compose itself.
OF_SCRIPTS = {"CONCILIA_ADMIN_ADDRESS", "CONCILIA_BROKER_HOSTS", "CONCILIA_DRAWN_IMAGES"}


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def variables(file: str) -> dict[str, str]:
    """Variables of a compose file with their defaults."""
    text = (ROOT / file).read_text()
    found = re.findall(r"\$\{([A-Z_]+)(?::-((?:[^{}]|\{[^{}]*\})*))?(?::?\?)?\}", text)
    return dict(found)


def environments(file: str) -> list[tuple[str, str, str]]:
    """(service, variable, value) of every environment in a compose file."""
    document: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return [
        (name, variable, str(value))
        for name, service in document["services"].items()
        for variable, value in (service.get("environment") or {}).items()
    ]


def test_the_example_names_every_variable_with_its_default() -> None:
    used = variables("docker-compose.yml")
    given = example()
    assert set(given) == set(used) | OF_SCRIPTS
    for name, default in used.items():
        if name != "CONCILIA_DATA":  # its default is the folder that lesions are drawn into
            assert given[name] == default, name


def test_scripts_use_what_only_scripts_are_said_to_use() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy").iterdir() if path.is_file())
    for name in OF_SCRIPTS:
        assert name in text


@pytest.mark.parametrize("file", FILES)
def test_every_setting_in_a_compose_file_exists(file: str) -> None:
    seen = 0
    for service, variable, value in environments(file):
        prefix = next((prefix for prefix in SETTINGS if variable.startswith(prefix)), None)
        if prefix is None:
            assert not variable.startswith("CONCILIA_") or variable == "CONCILIA_CONFIG", f"{service}: {variable}"
            continue
        seen += 1
        assert variable.removeprefix(prefix).lower() in SETTINGS[prefix].model_fields, f"{service}: {variable}"
        assert "password" not in value.lower() or "/run/secrets/" in value, f"{service}: {variable} holds a secret"
    assert seen >= 10


@pytest.mark.parametrize("file", FILES)
def test_every_required_setting_is_given(file: str) -> None:
    by_service: dict[str, set[str]] = {}
    for service, variable, _ in environments(file):
        by_service.setdefault(service, set()).add(variable)
    claimed = {"KEYSTORE", "PASSWORD_FILE", "DIRECTORY"}  # a claim fills these in
    for service, given in by_service.items():
        for prefix, kind in SETTINGS.items():
            if not any(variable.startswith(prefix) for variable in given):
                continue
            required = {name.upper() for name, field in kind.model_fields.items() if field.is_required()}
            if any(variable.startswith("CONCILIA_CLAIM_") for variable in given) and kind is NodeSettings:
                required -= claimed
            assert required <= {variable.removeprefix(prefix) for variable in given}, f"{service}: {kind.__name__}"


@pytest.mark.parametrize("file", FILES)
def test_no_host_port_is_open_to_a_network(file: str) -> None:
    document: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    for service in document["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${CONCILIA_BIND:-127.0.0.1}:"))
