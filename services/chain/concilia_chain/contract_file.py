"""The contract's build on disk: its ABI and its bytecode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from concilia_chain.errors import StartError


class ContractFile(NamedTuple):
    """ABI and creation bytecode (0x-prefixed hexadecimal) of a compiled contract."""

    abi: Sequence[Mapping[str, Any]]
    bytecode: str


def read(path: Path) -> ContractFile:
    """Read a build. Raises `StartError` where it is missing or no build."""
    try:
        document = json.loads(path.read_text())
        bytecode = document["bytecode"]
        return ContractFile(document["abi"], "0x" + bytecode.removeprefix("0x"))
    except FileNotFoundError as error:
        raise StartError(f"{path} is missing; build the contract or set CONCILIA_CHAIN_CONTRACT_FILE") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{path} is no contract build (JSON with 'abi' and 'bytecode')") from error
