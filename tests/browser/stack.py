"""The whole stack on this machine for browser tests: real processes, three hospitals with drawn pictures, real keys."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from concilia.client import Client
from concilia.connection import Connection, Endpoints, UsageError
from concilia.stack import dataset, supervisor
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import Layout, Site, headers_of
from concilia.stack.supervisor import Supervisor
from concilia_kit import keystore
from concilia_kit.roles import Role
from concilia_kit.wire.auth import AccessToken, Audience, BrowserSession
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.models import InitialModelRequest, Weights
from concilia_kit.wire.training import Architecture, Balance, Evaluation, LocalTraining
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "frontend" / "dist"
HOSPITALS = 3
PICTURES = 480
"""So many that each hospital holds out enough to calibrate."""
DRAWN = "drawn"
FIRST_JOB = "First light"
START_SECONDS = 240.0
ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED})
COOKIE = "__Host-concilia"

_kept: list[Supervisor] = []  # held, lest Python warns of processes that are left running on purpose


class BrowserStack:
    """A running stack, and what a test does to it behind the browser's back."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._keys: dict[str, LocalAccount] = {}
        self._opened = contextlib.ExitStack()
        self.url = layout.url("front")
        self.directory = layout.directory
        self.pictures = sorted((layout.directory / DRAWN).glob("**/*.jpg"))
        self.csp_reports_expected = 0
        self.redis: redis.Redis = self._opened.enter_context(
            redis.Redis(port=layout.port_of("redis"), decode_responses=True)
        )
        self._http = self._opened.enter_context(httpx.Client(timeout=30))

    def close(self) -> None:
        """Close every connection."""
        self._opened.close()

    def warnings(self) -> str:
        """What the processes warned of so far, the newest last."""
        warned = re.compile(r"\[(warning|error|critical) *\]|^\w*(Error|Exception)\b")
        lines = [line for line in logs(self._layout.directory, 1000).splitlines() if warned.search(line)]
        return "\n".join(lines[-20:])

    # ----------------------------------------------------------------------------------------------------- people

    def account(self, name: str) -> LocalAccount:
        """Somebody's key: admin, clinician, auditor, node-0 …"""
        if name not in self._keys:  # opening a keystore takes a second
            path = self._layout.keystore(name)
            self._keys[name] = keystore.load(path, path.with_suffix(".password"))
        return self._keys[name]

    def stranger(self) -> LocalAccount:
        """A fresh key that nobody knows."""
        made: LocalAccount = Account.create()
        return made

    @functools.cached_property
    def admin(self) -> Client:
        """The administrator's Python client."""
        return self.client("admin")

    def client(self, name: str) -> Client:
        """A Python client of somebody with a keystore."""
        path = self._layout.keystore(name)
        named = {"keystore": path, "password_file": path.with_suffix(".password")}
        endpoints = Endpoints.read(self._layout.connection_file).model_copy(update=named)
        return self._opened.enter_context(Client(Connection(endpoints)))

    def grant(self, address: str, role: str) -> None:
        """Have the administrator grant a role."""
        self._change(address, Role(role), granted=True)

    def revoke(self, address: str, role: str) -> None:
        """Have the administrator take a role."""
        self._change(address, Role(role), granted=False)

    def _change(self, address: str, role: Role, *, granted: bool) -> None:
        self.admin.change_role(role, address, granted=granted, deadline=int(time.time()) + 600)
        url = f"{self._layout.url('chain')}/v1/members/{address}/roles"
        until(lambda: (role in self._http.get(url).raise_for_status().json()["roles"]) is granted, 30)

    # --------------------------------------------------------------------------------------------------- sign-in

    @functools.cached_property
    def chain_id(self) -> int:
        """The ledger's chain."""
        return self.admin.contract().chain_id

    def challenge(self, key: LocalAccount) -> str:
        """A sign-in message for a key, from the server."""
        answer = self._http.post(f"{self.url}/api/auth/v1/challenges", json={"address": key.address})
        message: str = answer.raise_for_status().json()["message"]
        return message

    @staticmethod
    def signed(message: str, key: LocalAccount) -> str:
        """A message's `personal_sign` signature by a key."""
        return "0x" + key.sign_message(encode_defunct(text=message)).signature.hex().removeprefix("0x")

    def session(self, key: LocalAccount) -> str:
        """Sign in as a browser does; the value of the session's cookie."""
        message = self.challenge(key)
        signed = {"message": message, "signature": self.signed(message, key)}
        answer = self._http.post(f"{self.url}/api/auth/v1/browser-sessions", json=signed)
        self._http.cookies.clear()  # the next to sign in would end this session
        BrowserSession.model_validate_json(answer.raise_for_status().content)
        found = re.match(rf"{COOKIE}=([^;]+)", answer.headers["set-cookie"])
        assert found is not None, answer.headers["set-cookie"]
        return found[1]

    def csp_reports(self) -> int:
        """Violations of the content security policy that browsers reported so far."""
        text = self._http.get(f"{self._layout.url('auth')}/metrics").raise_for_status().text
        counted = re.findall(r"^concilia_csp_reports_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
        return sum(int(float(value)) for value in counted)

    def await_csp_reports(self, count: int) -> None:
        """Wait until so many were reported."""
        until(lambda: self.csp_reports() >= count, 30)

    # ------------------------------------------------------------------------------------------------------ jobs

    @functools.cached_property
    def initial(self) -> str:
        """Digest of random initial weights of a ResNet-18."""
        asked = InitialModelRequest(architecture=Architecture.RESNET18, weights=Weights.RANDOM)
        return self.admin.initial_model(asked).digest

    @functools.cached_property
    def job(self) -> JobView:
        """A job of two rounds that has finished and published its model."""
        made = next((job for job in self.admin.jobs() if job.spec.name == FIRST_JOB), None)
        job = made or self.new_job(name=FIRST_JOB, rounds=2)
        return self.await_job(job.id, lambda view: view.phase is Phase.FINISHED)

    def new_job(self, rounds: int = 2, **fields: Any) -> JobView:
        """Start a job that takes little: pictures of 32 × 32 pixels, at most 32 of each hospital."""
        local = LocalTraining(batch_size=16, learning_rate=0.01, image_size=32, max_images=32, balance=Balance.SAMPLING)
        usual = {
            "name": "A small job",
            "architecture": Architecture.RESNET18,
            "initial": self.initial,
            "rounds": rounds,
            "quorum": HOSPITALS,
            "deadline_seconds": 120,
            "local": local,
            "evaluation": Evaluation(max_images=16),
        }
        return self.admin.create_job(JobSpec.model_validate({**usual, **fields}))

    def await_job(self, job: str, condition: Callable[[JobView], bool], seconds: float = 120) -> JobView:
        """A job once a condition holds; fails where it does not in time, or where the job ended before it did."""
        seen: list[JobView] = []

        def holds() -> bool:
            seen[:] = [self.admin.job(job)]
            return condition(seen[0]) or seen[0].phase in ENDED

        until(holds, seconds)
        assert condition(seen[0]), f"the job {seen[0].phase.value}: {seen[0].detail}"
        return seen[0]

    def token(self, somebody: str | LocalAccount, audience: str) -> str:
        """An access token of somebody, by name or by key, for one service, for calls beside the browser."""
        session = self.session(self.account(somebody) if isinstance(somebody, str) else somebody)
        asked = {"audience": Audience(audience)}
        csrf = self._http.get(f"{self.url}/api/auth/v1/browser-session", headers={"Cookie": f"{COOKIE}={session}"})
        headers = {"Cookie": f"{COOKIE}={session}", "X-CSRF-Token": csrf.raise_for_status().json()["csrf_token"]}
        answer = self._http.post(f"{self.url}/api/auth/v1/tokens", json=asked, headers=headers)
        return AccessToken.model_validate_json(answer.raise_for_status().content).token


@contextlib.contextmanager
def running_stack(directory: Path) -> Iterator[BrowserStack]:
    """Start everything in a folder, make the first job, and stop everything whatever happens."""
    with contextlib.ExitStack() as ending:
        try:
            layout = Layout(directory, _free_ports(), _copy_of_pages(directory))
            supervising = Supervisor(layout)
            ending.callback(supervising.stop)
            stack = _start(layout, supervising)
            ending.callback(stack.close)
            yield stack
            supervising.check()
        except Exception:
            print(logs(directory), file=sys.stderr)
            raise


@contextlib.contextmanager
def kept_stack(directory: Path) -> Iterator[BrowserStack]:
    """A stack that runs on from one run of the tests to the next, with the pages as they are built now."""
    remembered = directory / "port"
    if supervisor.running(directory):
        stack = BrowserStack(Layout(directory, int(remembered.read_text()), _pages()))
    else:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        layout = Layout(directory, _free_ports(), _pages())
        remembered.write_text(str(layout.port))
        _kept.append(Supervisor(layout))
        stack = _start(layout, _kept[-1])
    with contextlib.closing(stack):
        stack.csp_reports_expected = stack.csp_reports()
        yield stack


def _start(layout: Layout, supervising: Supervisor) -> BrowserStack:
    pictures = layout.directory / DRAWN
    dataset.draw(pictures, PICTURES, seed=0)
    found = dataset.check(pictures, seed=0).sites[:HOSPITALS]
    sites = [Site(item.site.removeprefix("collection:"), item.site) for item in found]
    (layout.directory / "redis").mkdir()
    addresses = make_keys(layout, len(sites))
    write_connection(layout)
    processes = layout.processes(addresses["admin"], pictures, sites, threads=1)
    supervising.start(processes)
    supervising.await_ready(processes, START_SECONDS, lambda name: None)
    stack = BrowserStack(layout)
    enrol(stack.admin, addresses)
    until(lambda: len(stack.admin.nodes()) == HOSPITALS, START_SECONDS)
    _ = stack.job
    return stack


def _pages() -> Path:
    if not (PAGES / "index.html").is_file():
        pytest.fail(f"the pages were not built: there is no {PAGES.relative_to(ROOT)}; run 'make pages'")
    return PAGES


def _copy_of_pages(directory: Path) -> Path:
    """The pages as they are now: a build during the tests must not change what they look at."""
    pages = directory / "frontend" / "dist"
    shutil.copytree(_pages(), pages)
    shutil.copy(headers_of(PAGES), headers_of(pages))
    return pages


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:.0f} s"
        time.sleep(0.1)


def _free_ports() -> int:
    """The first of the ports of a stack: all free, and below those that the system gives out itself."""
    count = len(Layout(Path(), 1, PAGES).ports(HOSPITALS))
    for _ in range(200):
        first = random.randrange(12_000, 32_000 - count)
        with contextlib.suppress(UsageError):
            supervisor.require_free(dict.fromkeys(range(first, first + count), "a test"))
            return first
    raise AssertionError("no free ports")


def logs(directory: Path, lines: int = 40) -> str:
    """The end of every process's log."""
    parts = []
    for path in sorted((directory / "logs").glob("*.log")):
        parts += [f"--- the end of {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
    return "\n".join(parts)
