"""`concilia enrol` against a ledger in memory that keeps the contract's rules about roles."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from concilia import app
from concilia.commands import enrol
from concilia.commands.enrol import Enrolment, KeystoreUnreadable, Wanted
from concilia.connection import UsageError
from concilia_kit.problems import Conflict, Forbidden, Problem, Unavailable
from concilia_kit.roles import Role
from concilia_kit.wire.chain import Member, Receipt
from eth_utils.address import to_checksum_address
from typer.testing import CliRunner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
runner = CliRunner()


class LedgerDouble:
    """Roles, hospital numbers that stay, and nonces; `failures` are raised once each, before a call acts."""

    def __init__(self, *failures: Problem) -> None:
        self.roles: dict[str, set[Role]] = {}
        self.numbers: dict[str, int] = {}
        self.nonce = 0
        self.failures = list(failures)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def member(self, address: str) -> Member:
        self._fail()
        return Member(
            address=address,
            roles=tuple(sorted(self.roles.get(address, ()))),
            hospital_number=self.numbers.get(address, 0),
            nonce=self.nonce,
        )

    def change_role(self, role: Role, account: str, *, granted: bool, deadline: int) -> Receipt:
        self._fail()
        assert deadline > NOW.timestamp()
        self.nonce += 1
        held = self.roles.setdefault(account, set())
        if granted:
            held.add(role)
            if role is Role.HOSPITAL:
                self.numbers.setdefault(account, len(self.numbers) + 1)
        else:
            held.discard(role)
        return Receipt(transaction="0x1", block=self.nonce, gas=1, received_at=NOW, sent_at=NOW, confirmed_at=NOW)


class Stop(Exception):
    """Ends an endless watch in a test."""


def address(number: int) -> str:
    return str(to_checksum_address(f"0x{number:040x}"))


def write_key(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"address": f"{number:040x}", "version": 3, "crypto": {}}))
    return path


def make(ledger: LedgerDouble) -> tuple[Enrolment, list[tuple[str, str]], list[str]]:
    grants: list[tuple[str, str]] = []
    troubles: list[str] = []
    enrolment = Enrolment(
        ledger, lambda item, who, _: grants.append((item.role.value, who)), troubles.append, NOW.timestamp
    )
    return enrolment, grants, troubles


def pauses(actions: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """One action at each pause, and the end after the last."""
    waiting = iter(actions)

    def pause() -> None:
        action = next(waiting, None)
        if action is None:
            raise Stop
        action()

    return pause


def nothing() -> None:
    pass


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("spelling", [f"{10:040x}", f"{10:040X}", f"0x{10:040x}", address(10)])
def test_an_address_is_read_without_a_password(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "key").write_text(json.dumps({"address": spelling}))
    assert enrol.address_in(tmp_path / "key") == address(10)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"address": 5}', '{"address": "0x12"}', "[" * 60_000, "\xff", '{"address": null}']
)
def test_what_is_no_keystore_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_bytes(content.encode("latin-1"))
    with pytest.raises(KeystoreUnreadable, match="is no keystore v3"):
        enrol.address_in(tmp_path / "key")


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" " * enrol.KEYSTORE_BYTES + json.dumps({"address": address(1)}))
    with pytest.raises(KeystoreUnreadable):
        enrol.address_in(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "coordinator", "coordinator=", "king=file", "=file"])
def test_a_grant_that_cannot_be_read_is_explained(text: str) -> None:
    with pytest.raises(UsageError, match="ROLE=KEYSTORE_FILE"):
        Wanted.parse(text)


# --------------------------------------------------------------------------------------------------------------- roles


def test_only_what_the_ledger_does_not_show_is_granted(tmp_path: Path) -> None:
    ledger = LedgerDouble()
    ledger.roles[address(1)] = {Role.COORDINATOR}
    wanted = [
        Wanted(Role.COORDINATOR, write_key(tmp_path / "aggregator", 1)),
        Wanted(Role.AUDITOR, write_key(tmp_path / "model", 2)),
    ]
    enrolment, grants, troubles = make(ledger)
    ready: list[int] = []
    enrol.run(enrolment, wanted, None, lambda: ready.append(len(grants)), nothing)
    assert grants == [("auditor", address(2))]
    assert ready == [1]
    assert not troubles
    again, grants, _ = make(ledger)
    enrol.run(again, wanted, None, nothing, nothing)
    assert grants == []


def test_services_that_are_away_are_waited_for_and_told_once(tmp_path: Path) -> None:
    away = [Unavailable("the chain does not answer") for _ in range(3)]
    ledger = LedgerDouble(*away, Conflict("another nonce", code="invalid_account_nonce"))
    enrolment, grants, troubles = make(ledger)
    enrol.run(enrolment, [Wanted(Role.AUDITOR, write_key(tmp_path / "key", 1))], None, nothing, nothing)
    assert grants == [("auditor", address(1))]
    assert troubles == [
        "the chain does not answer (unavailable), trying again",
        "another nonce (invalid_account_nonce), trying again",
    ]


def test_a_refusal_that_no_other_try_changes_ends_it(tmp_path: Path) -> None:
    enrolment, _, _ = make(LedgerDouble(Forbidden("not an administrator")))
    with pytest.raises(Forbidden):
        enrol.run(enrolment, [Wanted(Role.AUDITOR, write_key(tmp_path / "key", 1))], None, pytest.fail, nothing)


def test_a_key_that_is_not_there_is_waited_for_only_while_watching(tmp_path: Path) -> None:
    wanted = [Wanted(Role.AUDITOR, tmp_path / "key")]
    enrolment, grants, troubles = make(LedgerDouble())
    with pytest.raises(UsageError, match="is missing"):
        enrol.run(enrolment, wanted, None, pytest.fail, nothing)
    later = pauses([nothing, lambda: write_key(tmp_path / "key", 1)])
    with pytest.raises(Stop):
        enrol.run(enrolment, wanted, tmp_path / "slots", nothing, later)
    assert grants == [("auditor", address(1))]
    assert troubles == [f"{tmp_path / 'key'} is not there yet, waiting"]


def test_a_file_that_is_no_key_is_the_caller_s_fault(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("{}")
    enrolment, _, _ = make(LedgerDouble())
    with pytest.raises(UsageError, match="is no keystore"):
        enrol.run(enrolment, [Wanted(Role.AUDITOR, tmp_path / "key")], tmp_path, pytest.fail, nothing)


# --------------------------------------------------------------------------------------------------------------- watch


def test_each_slot_that_comes_is_enrolled_once(tmp_path: Path) -> None:
    ledger = LedgerDouble()
    write_key(tmp_path / "slot-0" / "keystore.json", 1)
    write_key(tmp_path / "elsewhere" / "keystore.json", 9)
    enrolment, grants, troubles = make(ledger)
    come = [lambda: write_key(tmp_path / "slot-1" / "keystore.json", 2), nothing, nothing]
    with pytest.raises(Stop):
        enrol.run(enrolment, [], tmp_path, nothing, pauses(come))
    assert grants == [("hospital", address(1)), ("hospital", address(2))]
    assert not troubles


@pytest.mark.parametrize("restarted", [False, True])
def test_who_was_put_out_stays_out(tmp_path: Path, restarted: bool) -> None:
    ledger = LedgerDouble()
    write_key(tmp_path / "slot-0" / "keystore.json", 1)
    enrolment, grants, troubles = make(ledger)
    enrolment.look(tmp_path)
    ledger.change_role(Role.HOSPITAL, address(1), granted=False, deadline=2**40)
    if restarted:
        enrolment, grants, troubles = make(ledger)
        grants.append(("hospital", address(1)))
    for _ in range(3):
        enrolment.look(tmp_path)
    assert grants == [("hospital", address(1))]
    assert ledger.roles[address(1)] == set()
    assert len(troubles) == (1 if restarted else 0)


def test_a_watch_outlives_whatever_it_meets(tmp_path: Path) -> None:
    ledger = LedgerDouble(Forbidden("not an administrator"), Unavailable("away"), Unavailable("away"))
    (tmp_path / "slot-0").mkdir()
    (tmp_path / "slot-0" / "keystore.json").write_text("{")
    write_key(tmp_path / "slot-1" / "keystore.json", 1)
    enrolment, grants, troubles = make(ledger)
    for _ in range(4):
        enrolment.look(tmp_path)
    assert grants == [("hospital", address(1))]
    assert [text.split(" (")[0] for text in troubles[1:]] == ["not an administrator", "away"]
    write_key(tmp_path / "slot-0" / "keystore.json", 2)
    enrolment.look(tmp_path)
    assert grants[1:] == [("hospital", address(2))]


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> LedgerDouble:
    double = LedgerDouble()
    monkeypatch.setattr(enrol, "client", lambda _config: double)
    return double


def test_the_command_grants_says_so_and_touches_the_file(tmp_path: Path, ledger: LedgerDouble) -> None:
    keys = [write_key(tmp_path / "one.json", 1), write_key(tmp_path / "two.json", 2)]
    arguments = ["enrol", "--grant", f"coordinator={keys[0]}", "--grant", f"clinician={keys[1]}"]
    done = runner.invoke(app.app, [*arguments, "--ready", str(tmp_path / "ready"), "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["role"], line["address"], line["block"]) for line in lines] == [
        ("coordinator", address(1), 1),
        ("clinician", address(2), 2),
    ]
    assert (tmp_path / "ready").exists()
    again = runner.invoke(app.app, arguments)
    assert (again.exit_code, again.stdout) == (0, "")


def test_an_earlier_run_s_file_does_not_count(tmp_path: Path, ledger: LedgerDouble) -> None:
    (tmp_path / "ready").touch()
    ledger.failures.append(Forbidden("not an administrator"))
    key = write_key(tmp_path / "key", 1)
    done = runner.invoke(app.app, ["enrol", "--grant", f"auditor={key}", "--ready", str(tmp_path / "ready")])
    assert done.exit_code == 1
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to do"),
        (["--grant", "nobody=x"], "ROLE=KEYSTORE_FILE"),
        (["--grant", "auditor=/nonexistent/key"], "/nonexistent/key is missing"),
        (["--watch", "x", "--ready", "/nonexistent/ready"], "there is no folder /nonexistent"),
    ],
)
def test_wrong_use_is_one_line(ledger: LedgerDouble, arguments: list[str], words: str) -> None:
    done = runner.invoke(app.app, ["enrol", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_sigterm_ends_a_watch_with_success(tmp_path: Path) -> None:
    """A real process, whose services do not even answer."""
    connection: dict[str, Any] = {
        f"{name}_url": "http://127.0.0.1:1" for name in ("auth", "model", "chain", "aggregator")
    }
    (tmp_path / "concilia.json").write_text(json.dumps({**connection, "keystore": "k", "password_file": "p"}))
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "concilia", "enrol", "--watch", str(tmp_path), "--ready", str(ready)]
    with subprocess.Popen(
        [*command, "--config", str(tmp_path / "concilia.json"), "--interval", "600"], stderr=subprocess.PIPE, text=True
    ) as process:
        while not ready.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
