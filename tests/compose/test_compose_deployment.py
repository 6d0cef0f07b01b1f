"""The deployment that ops teams run, built, run and broken for real. The tests build on each other, in this order."""

from __future__ import annotations

import json
import time

import pytest
from concilia.client import Client
from concilia.commands.verification import run_verification
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobView, Phase

from .conftest import NODE_SECONDS, PROJECT, Stack, closed, ended, wait_for

SERVICES = (
    "redis",
    "postgres",
    "ganache",
    "auth",
    "model",
    "chain",
    "aggregator",
    "aggregator-worker",
    "frontend",
    "client-node",
)


def hospitals(to: Client, job: str) -> list[set[str]]:
    """Who is accepted in each closed round."""
    return [
        {item.update.hospital for item in round_.accepted()}
        for round_ in to.ledger_job(job).rounds
        if round_.status is RoundStatus.CLOSED
    ]


def await_live(to: Client, count: int) -> None:
    """Wait until cohorts are of so many: nodes that went are in them until they were not heard of for a while."""
    deadline = time.monotonic() + 4 * NODE_SECONDS
    while True:
        live = [node.address for node in to.nodes() if node.seen_seconds_ago <= NODE_SECONDS]
        if len(live) == count:
            return
        assert time.monotonic() < deadline, f"{len(live)} live nodes, not {count}"
        time.sleep(0.5)


def test_everything_is_healthy_and_runs_as_nobody(stack: Stack) -> None:
    lines = stack.compose("ps", "--format", "json").splitlines()
    containers = [json.loads(line) for line in lines]
    assert {item["Service"] for item in containers} >= {*SERVICES, "enrol"}
    assert len([item for item in containers if item["Service"] == "client-node"]) == 4
    for item in containers:
        assert item["State"] == "running"
        assert item["Health"] == ("" if item["Service"] == "enrol" else "healthy"), item["Service"]
        details = json.loads(stack.run("docker", "inspect", item["ID"]))[0]
        host = details["HostConfig"]
        assert host["ReadonlyRootfs"], item["Service"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert details["Config"]["User"] not in ("", "root", "0"), item["Service"]
        assert host["LogConfig"]["Config"]["max-size"]
        for bindings in (details["NetworkSettings"]["Ports"] or {}).values():
            assert all(binding["HostIp"] == "127.0.0.1" for binding in bindings or ())


def test_a_job_through_the_front_door_alone(stack: Stack) -> None:
    to = stack.client()
    job = stack.create(to)
    view = wait_for(to, job.id, ended, 240)
    assert view.phase is Phase.FINISHED, view.detail
    updates = [item for round_ in to.ledger_job(job.id).rounds for item in round_.updates]
    assert len(updates) == 8
    assert len({item.update.hospital for item in updates}) == 4
    assert len([item for item in to.transactions(job.id) if item.function == "submitUpdates"]) == 8
    verdict = run_verification(to, job.id, None)
    assert verdict.ok, verdict.findings
    prediction = to.predict(next((stack.folder / "data").glob("**/*.jpg")))
    assert prediction.model == verdict.published
    assert prediction.job == job.id


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedadam"},
        {"name": "scaffold"},
        {"name": "fedbn"},
        {"name": "multi_krum", "mixing": "nearest_neighbours", "hostile": 0.25},
    ],
    ids=lambda strategy: str(strategy["name"]),
)
def test_a_strategy_that_looks_or_remembers(stack: Stack, strategy: dict[str, object]) -> None:
    """What is remembered, what hospitals keep, and sealed files, by the deployment's own containers; and verified."""
    to = stack.client()
    job = stack.create(to, strategy=strategy)
    view = wait_for(to, job.id, ended, 240)
    assert view.phase is Phase.FINISHED, view.detail
    verdict = run_verification(to, job.id, None)
    assert verdict.ok, verdict.findings


def test_what_the_store_keeps_is_sealed(stack: Stack) -> None:
    listed = stack.inside(
        "model", "sh", "-c", "find /artifacts -type f -exec head -c 8 {} \\; | tr -d '\\0' | fold -w 8 | sort | uniq -c"
    )
    (line,) = listed.split("\n")[:-1]
    assert line.split()[1] == "CNCSEAL1"
    assert int(line.split()[0]) >= 10


def test_scaling_during_a_job(stack: Stack) -> None:
    to = stack.client()
    addresses = {node.address for node in to.nodes()}
    assert len(addresses) == 4
    job = stack.create(to, rounds=200, quorum=2, deadline_seconds=40)
    wait_for(to, job.id, lambda view: closed(view) >= 1, 120)
    assert hospitals(to, job.id)[-1] == addresses

    stack.scale(6)
    wait_for(to, job.id, lambda _: max(map(len, hospitals(to, job.id))) == 6, 120)
    everybody = {node.address for node in to.nodes()}
    assert len(everybody) == 6
    assert addresses < everybody

    stack.scale(2)
    before = closed(to.job(job.id))
    view = wait_for(to, job.id, lambda view: closed(view) >= before + 2, 180)
    assert len(hospitals(to, job.id)[-1]) == 2
    for item in view.rounds:
        if item.closed_at is not None and item.deadline is not None:
            assert item.closed_at.timestamp() <= item.deadline + 15, (
                f"round {item.round} closed long after its deadline"
            )

    await_live(to, 2)
    stack.scale(4)
    wait_for(to, job.id, lambda _: len(hospitals(to, job.id)[-1]) == 4, 120)
    assert {node.address for node in to.nodes()} == everybody, "a returning site has another address"
    to.stop_job(job.id)
    assert wait_for(to, job.id, ended, 60).phase is Phase.STOPPED
    assert all(round_.status is not RoundStatus.OPEN for round_ in to.ledger_job(job.id).rounds)


def test_restarting_each_service_and_all_of_them_during_a_job(stack: Stack) -> None:
    to = stack.client()
    await_live(to, 4)
    job = stack.create(to, rounds=16, quorum=4, deadline_seconds=180)
    wait_for(to, job.id, lambda view: view.phase is Phase.TRAINING, 120)
    for service in (*SERVICES, ""):
        before = closed(to.job(job.id))
        stack.compose("restart", *([service] if service else []))
        to = stack.client()
        after = wait_for(to, job.id, lambda view, n=before: closed(view) > n or ended(view), 240)  # type: ignore[misc]
        print(f"restart of {service or 'all'}: went on after round {closed(after)}")
    view = wait_for(to, job.id, ended, 600)
    assert view.phase is Phase.FINISHED, view.detail
    _agree(to, view)
    verdict = run_verification(to, job.id, None)
    assert verdict.ok, verdict.findings


def _agree(to: Client, view: JobView) -> None:
    """Chain and database say the same of every round, and no update counts twice or not at all."""
    ledger = {round_.round: round_ for round_ in to.ledger_job(view.id).rounds}
    shown = {item.round: item for item in view.rounds if item.round}
    assert set(ledger) == set(shown)
    for number, round_ in ledger.items():
        who = [item.update.hospital for item in round_.updates]
        assert len(who) == len(set(who)) == round_.submitted
        assert shown[number].base == round_.base
        if round_.status is RoundStatus.CLOSED:
            assert shown[number].model == round_.global_digest
            assert shown[number].accepted == len(round_.accepted()) == round_.submitted - round_.rejected == 4


def test_backup_and_restore(stack: Stack) -> None:
    to = stack.client()
    finished = next(item for item in to.jobs() if item.phase is Phase.FINISHED)
    addresses = {node.address for node in to.nodes()}
    backup = stack.run("deploy/backup", str(stack.folder / "backup")).strip()
    assert not any((stack.folder / "backup").glob("*.password"))
    assert "nothing is overwritten" in stack.fails("deploy/restore", backup)
    stack.compose("down", "-v")
    assert PROJECT not in stack.run("docker", "volume", "ls", "--quiet")
    stack.run("deploy/restore", backup)
    stack.up()
    to = stack.client()
    verdict = run_verification(to, finished.id, None)
    assert verdict.ok, verdict.findings
    assert {node.address for node in to.nodes()} == addresses
    job = stack.create(to, rounds=1)
    assert wait_for(to, job.id, ended, 240).phase is Phase.FINISHED


PROBE = """
import json, socket, sys
answers = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(':', 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        answers[target] = True
    except OSError:
        answers[target] = False
print(json.dumps(answers))
"""


def test_a_client_node_reaches_the_front_door_and_the_broker_only(stack: Stack) -> None:
    inner = {"postgres": 5432, "ganache": 8545, "auth": 8000, "model": 8000, "aggregator": 8000, "chain": 8000}
    inner["aggregator-worker"] = 8000
    by_name = [f"{name}:{port}" for name, port in inner.items()]
    by_address = []
    for name, port in inner.items():
        identifier = stack.compose("ps", "-q", name).strip()
        networks = json.loads(stack.run("docker", "inspect", identifier))[0]["NetworkSettings"]["Networks"]
        by_address += [f"{network['IPAddress']}:{port}" for network in networks.values()]
    outside = ["frontend:8443", "redis:6379"]
    answers = json.loads(stack.inside("client-node", "python", "-c", PROBE, *by_name, *by_address, *outside))
    assert [target for target, reached in answers.items() if reached] == outside
    # The same ports do answer where they should: the probe can tell the difference.
    core = json.loads(stack.inside("aggregator", "python", "-c", PROBE, "auth:8000", "postgres:5432"))
    assert all(core.values())


def test_a_service_enters_its_own_database_only(stack: Stack) -> None:
    names = ("model", "aggregator", "chain")
    for login in names:
        password = (stack.folder / "secrets" / f"db_{login}").read_text()
        for database in (*names, "postgres"):
            answer = stack.inside(
                "postgres",
                "env",
                f"PGPASSWORD={password}",
                *("psql", "-h", "127.0.0.1", "-U", login, "-d", database, "-tAc", "SELECT 1"),
                check=False,
            )
            assert answer.strip() == ("1" if database == login else ""), f"{login} in {database}"


def test_images_are_small_and_torch_is_where_it_belongs(stack: Stack) -> None:
    table = stack.run("deploy/images")
    print(table)
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:]}
    for name in ("auth", "aggregator", "chain"):
        assert int(rows[name][2]) < 400, rows[name]
        assert rows[name][3] == "no"
    assert rows["model"][3] == rows["client-node"][3] == "yes"


def test_images_hold_no_secret_and_no_compiler(stack: Stack) -> None:
    search = (
        "import pathlib, shutil; "
        "print([str(p) for p in pathlib.Path('/').glob('**/*') "
        "if not str(p).startswith(('/proc', '/sys', '/etc/ssl')) and p.is_file() "
        "and p.suffix in ('.pem', '.key', '.password') and 'site-packages' not in str(p) "
        # certificates of public authorities are no secret
        "and (p.suffix == '.password' or b'PRIVATE KEY' in p.read_bytes())], "
        "[c for c in ('gcc', 'cc', 'g++') if shutil.which(c)])"
    )
    for name in ("auth", "chain", "aggregator", "model", "client-node", "cli"):
        found = stack.run(
            "docker", "run", "--rm", "--network", "none", "--entrypoint", "python", f"concilia/{name}:dev", "-c", search
        )
        assert found.strip() == "[] []", name
