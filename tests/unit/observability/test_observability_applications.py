"""What every process shows at `/metrics`, held against the documentation, the rules and the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from .conftest import calling

ROOT = Path(__file__).parents[3]
OBSERVABILITY = ROOT / "deploy" / "observability"
DASHBOARD: dict[str, Any] = json.loads((OBSERVABILITY / "grafana/dashboards/concilia.json").read_text())

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
LANGUAGE = frozenset(
    {
        *("sum", "max", "min", "absent", "delta", "increase", "rate", "histogram_quantile"),
        *("and", "or", "unless", "by", "on", "without", "ignoring"),
    }
)
OF_PROMETHEUS = frozenset({"job", "instance"})


class Metric(NamedTuple):
    type: str
    labels: frozenset[str]


def documented() -> dict[str, Metric]:
    """The table of docs/metrics.md; counters without their suffix, as a registry names them."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*?) ?\| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert len(rows) == len({name for name, *_ in rows})
    return {
        name.removesuffix("_total"): Metric(kind, frozenset(filter(None, labels.replace(" ", "").split(","))))
        for name, kind, labels, _ in rows
    }


async def shown(app: FastAPI) -> dict[str, Any]:
    async with calling(app) as client:
        await client.get("/healthz")
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


async def test_what_is_shown_is_documented_and_the_other_way_round(applications: dict[str, FastAPI]) -> None:
    table = documented()
    everything: set[str] = set()
    for name, app in applications.items():
        families = await shown(app)
        assert {"concilia_http_requests", "process_resident_memory_bytes", "python_info"} <= set(families), name
        for family in families.values():
            assert table[family.name].type == family.type, family.name
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == table[family.name].labels, sample
        everything |= set(families)
    assert everything == set(table)


async def test_every_application_counts_for_itself(applications: dict[str, FastAPI]) -> None:
    for name, app in applications.items():
        requests = (await shown(app))["concilia_http_requests"].samples
        assert {sample.labels["service"] for sample in requests} == {name}


async def test_each_service_has_its_own_metrics(applications: dict[str, FastAPI]) -> None:
    own = {
        "auth": "concilia_sign_ins",
        "model": "concilia_predictions",
        "aggregator": "concilia_jobs",
        "aggregator-worker": "concilia_rounds",
        "chain": "concilia_transactions",
        "client-node": "concilia_node_tasks",
    }
    for name, app in applications.items():
        assert own[name] in await shown(app)
    assert "concilia_jobs" not in await shown(applications["aggregator-worker"])


async def test_the_aggregator_reads_jobs_nodes_and_queue_at_the_scrape(applications: dict[str, FastAPI]) -> None:
    families = await shown(applications["aggregator"])
    jobs = {sample.labels["phase"]: sample.value for sample in families["concilia_jobs"].samples}
    assert jobs.keys() >= {"training", "finished", "failed"}
    assert not any(jobs.values())
    assert {sample.labels["state"] for sample in families["concilia_nodes"].samples} == {"live", "silent"}
    assert [sample.labels for sample in families["concilia_queue_depth"].samples] == [{"queue": "aggregator"}]


# rules and dashboard: every expression stands on a line of its own, so reading them needs no YAML


def rules() -> dict[str, str]:
    """Expressions by the alert's or the record's name."""
    text = (OBSERVABILITY / "rules.yml").read_text()
    found = re.findall(r"^      - (?:alert|record): (\S+)\n        expr: ([^|>\s].*)$", text, re.M)
    assert len(found) == len(dict(found)) == text.count("expr:") > 10
    return dict(found)


def panels() -> dict[str, list[str]]:
    drawn = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in drawn}


def expressions() -> Iterator[tuple[str, str]]:
    yield from rules().items()
    for title, texts in panels().items():
        yield from ((title, text) for text in texts)


def known() -> dict[str, frozenset[str]]:
    """Label names by the name of a series: what is exposed (see the test of the table), and what rules record."""
    series = {"up": OF_PROMETHEUS}
    for name, metric in documented().items():
        for suffix in SUFFIXES[metric.type]:
            more = {"le"} if suffix == "_bucket" else set()
            series[name + suffix] = metric.labels | OF_PROMETHEUS | more
    for name, text in rules().items():
        if ":" in name:
            kept = re.match(r"(?:histogram_quantile\([\d.]+, )?(?:sum|max) by \(([^)]*)\)", text)
            series[name] = frozenset(re.split(r", ?", kept[1])) - {"le"} if kept else frozenset()
    return series


@pytest.mark.parametrize(("where", "text"), list(expressions()))
def test_every_series_and_label_of_an_expression_exists(where: str, text: str) -> None:
    series = known()
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", text)
    bare = re.sub(r"\b(?:by|on|without|ignoring) \([^)]*\)", "", bare)
    names = set(re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r"\{[^}]*\}", "", bare))) - LANGUAGE
    assert names
    assert names <= series.keys(), names - series.keys()
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", bare):
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= series[name], name
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", text) for label in re.split(r", ?", group)}
    assert grouped <= frozenset().union(*(series[name] for name in names)), where


def test_the_dashboard_shows_what_was_asked_of_it() -> None:
    text = json.dumps(panels())
    for metric in (
        "concilia_rounds_total",
        "concilia_updates_total",
        "concilia_round_seconds_sum",
        "concilia_transactions_total",
        "concilia_transaction_gas_sum",
        "concilia_predictions_total",
        "concilia:http_errors:ratio5m",
    ):
        assert metric in text
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))
    provisioned = (OBSERVABILITY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert f"uid: {next(p['datasource']['uid'] for p in DASHBOARD['panels'] if 'datasource' in p)}" in provisioned


def test_every_service_is_scraped_by_its_name(applications: dict[str, FastAPI]) -> None:
    text = (OBSERVABILITY / "prometheus.yml").read_text()
    jobs = re.findall(r"job_name: (\S+)\n    dns_sd_configs: \[\{names: \[(\S+)\], type: A, port: 8000", text)
    assert jobs == [(name, name) for name in applications]
