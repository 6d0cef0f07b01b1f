"""Rules that matter, as tests: every route is guarded, no pickle, small modules, torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from concilia_aggregator import api as aggregator
from concilia_aggregator import wakeup
from concilia_auth import api as auth
from concilia_chain import api as chain
from concilia_model import api as model
from fastapi import APIRouter, FastAPI

ROOT = Path(__file__).parents[2]

# Who may come without a token, and why.
PUBLIC = {
    ("POST", "/v1/challenges"): "the beginning of signing in",
    ("POST", "/v1/sessions"): "carries a signature instead",
    ("POST", "/v1/browser-sessions"): "carries a signature instead",
    ("POST", "/v1/csp-reports"): "browsers report of whatever page they are on, signed in or not",
    ("GET", "/.well-known/jwks.json"): "public keys",
    ("GET", "/v1/ended-sessions"): "ids, which open nothing; services ask it before they trust a token",
    ("GET", "/v1/contract"): "where to read what is public on the chain",
    ("GET", "/v1/members/{address}"): "what is public on the chain; auth asks it before anybody has a token",
    ("GET", "/v1/members/{address}/roles"): "what is public on the chain; services ask it before they trust a token",
    ("GET", "/v1/roles"): "the same of all, for services with many callers",
    ("POST", "/v1/rpc"): "a wallet has no token; reads of what is public on the chain, and nothing can be sent",
    ("POST", "/v1/role-changes"): "the administrator's signature is the authority, verified by the contract",
}


def sources() -> Iterator[Path]:
    for folder in ("libs", "services"):
        yield from (
            path for path in sorted((ROOT / folder).rglob("*.py")) if {"build", "setup.py"}.isdisjoint(path.parts)
        )


@pytest.mark.parametrize(
    "routers",
    [(auth.router, auth.well_known), (model.router,), (aggregator.router,), (chain.router,)],
    ids=["auth", "model", "aggregator", "chain"],
)
def test_every_route_is_guarded_or_listed(routers: tuple[APIRouter, ...]) -> None:
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    seen = 0
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            seen += 1
            is_public = (method.upper(), path) in PUBLIC
            assert bool(operation.get("security")) != is_public, f"{method.upper()} {path}"
    assert seen


def test_every_listed_exception_exists() -> None:
    app = FastAPI()
    for router in (auth.router, auth.well_known, model.router, aggregator.router, chain.router):
        app.include_router(router)
    routes = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    assert set(PUBLIC) <= routes


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "look for the seam"
    assert path.stem not in {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    tree = ast.parse(text)
    if path.stat().st_size:
        assert ast.get_docstring(tree) or path.parent.name == "versions", "say what the room is for"
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.split(".")[0] for name in names} & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
            pytest.fail(f"line {node.lineno}: reads pickles")


@pytest.mark.parametrize(
    "module",
    [
        *(
            "concilia_aggregator.main",
            "concilia_auth.main",
            "concilia_chain.main",
            "concilia_model.main",
            "concilia.app",
        ),
        "concilia_client_node.tasks",
    ],
)
def test_torch_is_not_imported(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-W", "ignore", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert module in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "torchvision"}}


def test_importing_opens_nothing() -> None:
    """Importing every module connects nowhere and starts no thread."""
    modules = []
    for path in sources():
        parts = path.relative_to(ROOT).parts
        start = next(index for index, part in enumerate(parts) if part.startswith("concilia"))
        name = ".".join(parts[start:]).removesuffix(".py").removesuffix(".__init__")
        if "migrations" not in name and not name.endswith("__main__"):
            modules.append(name)
    script = f"""
import importlib, sys, threading
def hook(event, args):
    if event == 'socket.connect':  # (binding is tried by a dependency, which asks whether there is IPv6)
        raise SystemExit(event)
sys.addaudithook(hook)
for name in {modules!r}:
    importlib.import_module(name)
    others = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if others:
        raise SystemExit(f'{{name}} started {{others}}')
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_queue_has_a_consumer() -> None:
    """Who is sent tasks (`queue=`) and who consumes (`-Q`) are the same two kinds of queue."""
    text = {path: path.read_text() for path in sources()}
    sent = [path for path, content in text.items() if "queue=queue_of(" in content]
    assert [path.parent.name for path in sent] == ["concilia_aggregator"]
    assert any("queue_of(" in content for path, content in text.items() if "concilia_client_node" in path.parts)
    assert wakeup.QUEUE == "aggregator"
    assert "_consume(worker, QUEUE)" in (ROOT / "services/aggregator/concilia_aggregator/__main__.py").read_text()
