"""`concilia job pause` and `resume`, as they are typed, against an aggregator that writes down what it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia import output
from concilia.app import app
from concilia.client import Client
from concilia.commands import jobs
from concilia_kit.wire.jobs import JobView
from concilia_kit.wire.models import InitialModel
from concilia_kit.wire.training import Architecture
from rich.console import Console
from typer.testing import CliRunner

JOB = "a" * 64


class Aggregator:
    """Has one job, and takes orders until it ended."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.has_ended = False

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=[self.view()])
        if self.has_ended:
            return httpx.Response(409, json={"code": "job_ended", "detail": "the job is stopped already"})
        self.orders.append(request.url.path)
        return httpx.Response(202)

    def view(self) -> dict[str, Any]:
        return {
            "id": JOB,
            "spec": {"name": "j", "initial": "0" * 64},
            "phase": "training",
            "paused": False,
            "round": 1,
            "detail": "",
            "created_at": "2026-01-01T00:00:00Z",
            "created_by": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "model": None,
            "rounds": [],
        }


@pytest.fixture
def aggregator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aggregator]:
    double = Aggregator()
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        yield double


@pytest.mark.parametrize("order", ["pause", "resume"])
def test_an_order_reaches_the_job_that_is_meant(aggregator: Aggregator, order: str) -> None:
    done = CliRunner().invoke(app, ["job", order, "aaaa"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["job", order, "latest", "--json"])
    assert json.loads(done.stdout) == {"job": JOB, "paused": order == "pause"}
    assert aggregator.orders == [f"/v1/jobs/{JOB}/{order}"] * 2


@pytest.mark.parametrize("order", ["pause", "resume"])
def test_a_job_that_ended_takes_no_order(aggregator: Aggregator, order: str) -> None:
    aggregator.has_ended = True
    done = CliRunner().invoke(app, ["job", order, "latest"])
    assert done.exit_code == 1
    assert "job_ended" in done.output


ROOT = "0x" + "11" * 20


class Creating(Aggregator):
    """Takes a job too, and shows what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path == "/v1/jobs":
            self.spec = json.loads(request.content)
            return httpx.Response(201, json=self.view() | {"spec": self.spec})
        return super().answer(request)


def test_a_job_is_created_with_its_encoding_and_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    double = Creating()
    initial = InitialModel(
        digest="0" * 64, architecture=Architecture.RESNET18, origin="random", loaded_tensors=0, fresh_tensors=1
    )
    monkeypatch.setattr(jobs, "initial_weights", lambda *_: initial)
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        done = CliRunner().invoke(app, ["job", "create", "--encoding", "topk:0.01+zstd"])
        assert done.exit_code == 0, done.output
        assert double.spec["encoding"] == {"name": "topk", "share": 0.01, "zstd": True}
        assert "updates as topk:0.01+zstd" in done.output.replace("\n", " ")
        done = CliRunner().invoke(app, ["job", "create", "--encoding", "int9"])
        assert done.exit_code == 2
        assert "--encoding: 'int9' is no encoding" in done.output
        done = CliRunner().invoke(app, ["job", "create", "--strategy", "fedbuff", "--encoding", "int8"])
        assert done.exit_code == 2
        assert "fedbuff cannot use int8" in done.output.replace("\n", " ")
        done = CliRunner().invoke(app, ["job", "create", "--strategy", "fedbuff", "--quorum", "2"])
        assert done.exit_code == 0, done.output
        assert (double.spec["strategy"]["name"], double.spec["quorum"]) == ("fedbuff", 2)
        assert not {"schedule", "calibrate", "sensitivity"} & double.spec.keys()
        done = CliRunner().invoke(app, ["job", "create", "--calibrate", "--sensitivity", "0.95", "--flips"])
        assert done.exit_code == 0, done.output
        assert (double.spec["calibrate"], double.spec["sensitivity"]) == (True, 0.95)
        assert double.spec["evaluation"]["flips"] is True
        done = CliRunner().invoke(app, ["job", "create", "--calibrate", "--strategy", "fedrep"])
        assert done.exit_code == 2
        assert "a network of its own" in " ".join(done.output.split())
        recipe = "--balance logit --optimizer adamw --label-smoothing 0.1 --mixup 0.2 --whole-job --warm-up 0.5"
        done = CliRunner().invoke(app, ["job", "create", *recipe.split(), "--head-rounds", "1"])
        assert done.exit_code == 0, done.output
        assert double.spec["schedule"] == {"whole_job": True, "warm_up": 0.5, "head_rounds": 1}
        local = double.spec["local"]
        assert (local["balance"], local["optimizer"]) == ("logit", "adamw")
        assert (local["label_smoothing"], local["mixup"]) == (0.1, 0.2)
        done = CliRunner().invoke(app, ["job", "create", "--statistics-rounds", "2"])
        assert done.exit_code == 0, done.output
        assert double.spec["schedule"]["statistics_rounds"] == 2
        done = CliRunner().invoke(app, ["job", "create", "--own-shares", "--balance", "logit"])
        assert done.exit_code == 0, done.output
        assert double.spec["own_shares"] is True
        done = CliRunner().invoke(app, ["job", "create", "--own-shares"])
        assert done.exit_code == 2
        assert "no own_shares with balance loss" in " ".join(done.output.split())
        done = CliRunner().invoke(app, ["job", "create", "--strategy", "scaffold", "--optimizer", "adamw"])
        assert done.exit_code == 2
        assert "scaffold goes by how far plain steps reach" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--strategy", "krum", "--set", "hostile=0.3"], {"name": "krum", "hostile": 0.3}),
        (
            ["--strategy", "median", "--set", "mixing=bucketing", "--set", "bucket=3"],
            {"mixing": "bucketing", "bucket": 3},
        ),
        (["--strategy", "fedprox", "--proximal-mu", "0.5"], {"name": "fedprox", "proximal_mu": 0.5}),
        (["--strategy", "acme.mine", "--set", "rate=0.1"], {"name": "acme.mine", "parameters": {"rate": 0.1}}),
        (["--strategy", "fltrust", "--set", f"root={ROOT}"], {"root": ROOT}),
        (
            ["--strategy", "dp_fedavg", "--set", "radius=1", "--set", "noise=2", "--set", "delta=1e-6"],
            {"name": "dp_fedavg", "radius": 1, "noise": 2, "delta": 1e-6},
        ),
    ],
)
def test_a_strategy_and_its_settings(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: dict[str, Any]
) -> None:
    double = Creating()
    initial = InitialModel(
        digest="0" * 64, architecture=Architecture.RESNET18, origin="random", loaded_tensors=0, fresh_tensors=1
    )
    monkeypatch.setattr(jobs, "initial_weights", lambda *_: initial)
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        done = CliRunner().invoke(app, ["job", "create", *words])
        assert done.exit_code == 0, done.output
        assert double.spec["strategy"].items() >= expected.items()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--strategy", "krumm"], "--strategy:"),
        (["--strategy", "fltrust"], "needs a root"),
        (["--strategy", "dp_fedavg", "--set", "noise=2"], "dp_fedavg needs a radius"),
        (["--strategy", "fedavg", "--set", "noise=2"], "noise and delta are dp_fedavg's"),
        (["--strategy", "krum", "--set", "hostile"], "write KEY=VALUE"),
        (["--strategy", "krum", "--set", "hostile=0.6"], "--set hostile:"),
        (["--strategy", "krum", "--set", "hostile=0.1", "--set", "hostile=0.2"], "is set twice"),
        (["--strategy", "krum", "--set", "hostyle=0.1"], "--set hostyle:"),
    ],
)
def test_a_strategy_that_is_none_is_told_in_a_line(words: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["job", "create", *words])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())


def test_a_job_is_created_for_what_a_file_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    double = Creating()
    asked: list[int] = []

    def initial(*given: Any) -> InitialModel:
        asked.append(given[4])
        return InitialModel(
            digest="0" * 64, architecture=Architecture.RESNET18, origin="random", loaded_tensors=0, fresh_tensors=1
        )

    monkeypatch.setattr(jobs, "initial_weights", initial)
    classes = [{"code": "normal", "name": "Normal"}, {"code": "pneumonia", "name": "Pneumonia"}]
    declared = tmp_path / "chest.json"
    declared.write_text(json.dumps({"classification": {"name": "chest", "classes": classes, "critical": "pneumonia"}}))
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        done = CliRunner().invoke(app, ["job", "create", "--classification", str(declared)])
        assert done.exit_code == 0, done.output
        assert double.spec["classification"]["classes"] == classes
        assert asked == [2]
        assert "pneumonia recall" in done.output
        done = CliRunner().invoke(app, ["job", "create"])
        assert done.exit_code == 0, done.output
        assert "classification" not in double.spec
        assert asked == [2, 7]
        assert "melanoma recall" in done.output
        declared.write_text('{"classification": {"name": "chest", "classes": []}}')
        for path, words in ((declared, "at least 2"), (tmp_path / "none.json", "No such file")):
            done = CliRunner().invoke(app, ["job", "create", "--classification", str(path)])
            assert done.exit_code == 2
            assert words in done.output.replace("\n", " ")
        assert len(asked) == 2


def test_a_job_trains_an_adapter_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    double, asked = Creating(), []

    def make(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        made = InitialModel(
            digest="b" * 64,
            architecture=Architecture.RESNET50,
            origin="adapter lora:8",
            loaded_tensors=1,
            fresh_tensors=2,
            adapter="lora:8",
            trunk="a" * 64,
        )
        return httpx.Response(201, content=made.model_dump_json())

    with (
        httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as aggregator,
        httpx.Client(transport=httpx.MockTransport(make), base_url="http://model") as model,
    ):
        here = type("Here", (), {"aggregator": aggregator, "model": model})()
        monkeypatch.setattr(jobs, "client", lambda _config: Client(here))
        done = CliRunner().invoke(app, ["job", "create", "--weights", "random", "--adapter", "lora:8"])
        assert done.exit_code == 0, done.output
        assert double.spec["initial"] == "b" * 64
        assert asked[0]["adapter"] == "lora:8"
        refused = CliRunner().invoke(app, ["job", "create", "--weights", "random", "--adapter", "lora:80"])
        assert refused.exit_code == 2, refused.output
        assert "--adapter" in refused.output
        plain = CliRunner().invoke(app, ["job", "create", "--weights", "random"])
        assert plain.exit_code == 0, plain.output
    assert len(asked) == 2
    assert "adapter" not in asked[1]


@pytest.mark.parametrize(
    ("options", "secure"),
    [
        ([], None),
        (["--secure"], {"threshold": 2 / 3, "bound": 4.0, "stage_seconds": 60}),
        (
            ["--secure", "--strategy", "median", "--secure-group", "5", "--secure-threshold", "0.8"],
            {"threshold": 0.8, "group": 5, "bound": 4.0, "stage_seconds": 60},
        ),
        (
            ["--secure", "--secure-norm", "9", "--secure-bound", "2", "--secure-seconds", "20"],
            {"threshold": 2 / 3, "bound": 2.0, "norm": 9.0, "stage_seconds": 20},
        ),
    ],
)
def test_a_job_is_created_whose_aggregator_sees_sums_only(
    monkeypatch: pytest.MonkeyPatch, options: list[str], secure: dict[str, Any] | None
) -> None:
    double = Creating()
    initial = InitialModel(
        digest="0" * 64, architecture=Architecture.RESNET18, origin="random", loaded_tensors=0, fresh_tensors=1
    )
    monkeypatch.setattr(jobs, "initial_weights", lambda *_: initial)
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        done = CliRunner().invoke(app, ["job", "create", *options])
        refused = CliRunner().invoke(app, ["job", "create", "--secure", "--secure-threshold", "0.5"])
    assert done.exit_code == 0, done.output
    assert double.spec.get("secure") == secure
    assert refused.exit_code == 2
    assert "threshold" in refused.output


SCORES = {
    "images": 10,
    "accuracy": 0.9,
    "balanced_accuracy": 0.8,
    "loss": 1.0,
    "recall": [0.7, 0.9],
    "melanoma_recall": 0.9,
    "auc": [0.6, 0.4],
}


def test_a_table_of_rounds_begins_with_what_a_job_is_judged_by(capsys: pytest.CaptureFixture[str]) -> None:
    classes = [{"code": "normal", "name": "Normal"}, {"code": "pneumonia", "name": "Pneumonia"}]
    told = {"name": "chest", "classes": classes, "critical": "pneumonia", "metrics": ["macro_auc", "accuracy"]}
    sites = [
        {"hospital": "0x" + f"{number:040x}", "site": "s", "scores": SCORES | {"auc": auc}}
        for number, auc in ((1, [0.25, 0.25]), (2, [0.75, None]), (3, [None, None]))
    ]
    seconds = (f"seconds_{what}" for what in ("training", "moving", "chain", "folding"))
    round_: dict[str, Any] = dict.fromkeys(("round", "accepted", "bytes_moved", *seconds), 0)
    nothing = ("base", "model", "opened_at", "closed_at", "deadline", "confusion", "overlapping_lesions")
    round_ |= dict.fromkeys(nothing) | {"rejected": [], "progress": {}, "pooled": SCORES, "sites": sites}
    view = Aggregator().view()
    view |= {"rounds": [round_], "spec": view["spec"] | {"classification": told}}
    output.rounds_table(JobView.model_validate(view), console=Console(width=300))
    said = capsys.readouterr().out
    assert " ".join(said.split()).count("pooled mean AUC") == 1
    heads = ("pooled mean AUC", "worst site", "accuracy", "balanced accuracy", "pneumonia recall", "loss")
    assert sorted(heads, key=said.index) == list(heads)
    figures = [cell.strip() for cell in said.splitlines()[-2].split("│")]
    assert figures[4:10] == ["0.500", "0.250", "0.900", "0.800", "0.900", "1.000"]


@pytest.mark.parametrize("name", ["timm:resnet10t", "resnet18"])
def test_a_job_is_created_for_the_network_that_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    double, asked = Creating(), []

    def initial(*given: Any) -> InitialModel:
        asked.append(given[1])
        return InitialModel(digest="0" * 64, architecture=given[1], origin="random", loaded_tensors=0, fresh_tensors=1)

    monkeypatch.setattr(jobs, "initial_weights", initial)
    with httpx.Client(transport=httpx.MockTransport(double.answer), base_url="http://aggregator") as http:

        class Here:
            aggregator = http

        monkeypatch.setattr(jobs, "client", lambda _config: Client(Here()))  # type: ignore[arg-type]
        done = CliRunner().invoke(app, ["job", "create", "--architecture", name])
    assert done.exit_code == 0, done.output
    assert (double.spec["architecture"], asked) == (name, [name])
    assert name in done.output


@pytest.mark.parametrize("name", ["resnet19", "timm:", "timm:hf-hub:someone/something"])
def test_a_network_that_is_none_is_told_in_a_line(name: str) -> None:
    done = CliRunner().invoke(app, ["job", "create", "--architecture", name])
    assert done.exit_code == 2
    assert f"--architecture: '{name}' is none of resnet50" in " ".join(done.output.split())
