"""Options that every command takes, and the one place where errors become exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from concilia_kit.classification import HAM10000, Declaration
from concilia_kit.problems import Problem
from concilia_kit.wire.adapter import rank_of
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.strategy import Strategy, StrategyName
from concilia_kit.wire.training import Architecture, ArchitectureName
from concilia_kit.wire.training import architecture_of as architecture_named
from pydantic import ValidationError

from concilia import output
from concilia.client import Client
from concilia.connection import Connection, Endpoints, UsageError

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Config = Annotated[
    Path,
    typer.Option("--config", envvar="CONCILIA_CONFIG", help="connection file: addresses of the services and your key"),
]
ModelArgument = Annotated[str, typer.Argument(help="a published model's digest or its beginning, or 'latest'")]
RECORDING_HELP = "how the ledger records updates: each by itself, or a round's under one Merkle root"
ENCODING_HELP = "how updates are sent: none, float16, int8, topk:0.01 (a share), each with +zstd or not"
ADAPTER_HELP = "train a small part: norms, or lora:8 (a rank, 1 to 64); everything if not given"
SECURE = SecureAggregation()
SECURE_HELP = "have the aggregator see sums of masked updates, and no single one; it takes three hospitals or more"
CLASSIFICATION_HELP = "file that declares the classes to tell apart; HAM10000's lesions if not given"
ARCHITECTURE_HELP = f"network: {', '.join(Architecture)}, or timm:NAME where hospitals have timm's extra"
STRATEGY_HELP = f"how updates become a model: {', '.join(StrategyName)}, or another package's"
DEFAULT_CONFIG = Path("var/demo/concilia.json")

P = ParamSpec("P")
T = TypeVar("T")


def client(config: Path) -> Client:
    """A client as the connection file's key. Raises `UsageError`."""
    return Client(Connection(Endpoints.read(config)))


def encoding_of(text: str) -> Encoding:
    """The encoding that an option names. Raises `UsageError`."""
    try:
        return Encoding.parse(text)
    except ValueError as error:
        raise UsageError(f"--encoding: {error}") from error


def adapter_of(text: str | None) -> str | None:
    """The kind of adapter that an option names. Raises `UsageError`."""
    try:
        if text is not None:
            rank_of(text)
    except ValueError as error:
        raise UsageError(f"--adapter: {error}") from error
    return text


def architecture_of(name: str) -> ArchitectureName:
    """The architecture that an option names. Raises `UsageError`."""
    try:
        return architecture_named(name)
    except ValueError as error:
        raise UsageError(f"--architecture: {error}") from error


def declared(path: Path | None) -> Declaration:
    """What a file declares that an option names; HAM10000 without one. Raises `UsageError`."""
    if path is None:
        return HAM10000
    try:
        return Declaration.read(path)
    except OSError as error:
        raise UsageError(f"--classification {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--classification: {error}") from error


def strategy_of(name: str, settings: Sequence[str]) -> Strategy:
    """The strategy that options name: `settings` are `KEY=VALUE`, of a strategy that another package brings its
    parameters. Raises `UsageError`."""
    given: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{text}': write KEY=VALUE, as in hostile=0.3")
        if key in given:
            raise UsageError(f"--set '{text}': {key} is set twice")
        try:
            given[key] = float(value)
        except ValueError:
            given[key] = value
    fields = {"parameters": given} if "." in name and given else given
    try:
        return Strategy.model_validate({"name": name, **fields})
    except ValidationError as error:
        fault = error.errors()[0]
        where = [str(part) for part in fault["loc"] if "[" not in str(part)]
        what = "--strategy" if where[:1] in ([], ["name"]) else f"--set {'.'.join(where)}"
        raise UsageError(f"{what}: {fault['msg']}") from error


@contextmanager
def options_checked() -> Iterator[None]:
    """Inside, wire models are made from options: a value that does not fit is the option's fault.

    Raises `UsageError` naming it.
    """
    try:
        yield
    except ValidationError as error:
        fault = error.errors()[0]
        name = "-".join(map(str, fault["loc"])).replace("_", "-")
        raise UsageError(f"--{name}: {fault['msg']}") from error


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose foreseeable errors end in one clear line: exit code 2 for usage, 1 for a service's answer."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except UsageError as error:
            output.err.print(f"error: {error}", markup=False)
            sys.exit(2)
        except Problem as problem:
            if kwargs.get("as_json"):
                output.as_json(problem.document())
            output.err.print(f"error: {problem.detail} ({problem.problem_code})", markup=False)
            extra: Any = problem.extra.get("errors") or []
            for item in extra:
                output.err.print(f"  {item.get('where')}: {item.get('what')}", markup=False)
            sys.exit(1)
        except KeyboardInterrupt:
            output.err.print("interrupted")
            sys.exit(130)

    return run
