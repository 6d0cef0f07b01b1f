"""Flower's own SecAgg+ workflow and client mod over a model's tensors, timed, in an environment of its own.

`python secagg.py round HOSPITALS LOST BASE TRAINED` runs a whole round with Flower's defaults, all messages handed over
in this process; `python secagg.py client NEIGHBOURS THRESHOLD TRAINED` one client's part alone, with so many neighbours
that are not computed. Prints seconds and CPU seconds of clients and server, bytes and error as JSON.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from aggregation import arrays
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
from flwr.compat.common import recorddict_compat as compat
from flwr.server import ServerConfig
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity

# The package gives the function the module's name.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

SAMPLES = 100
THRESHOLD = 2 / 3


class Clock:
    """Seconds and CPU seconds that went by while it was on."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun[0]
        self.cpu += time.process_time() - self._begun[1]


class Nodes:
    """Clients in this process, in place of Flower's grid: each is asked what a message asks, one after another."""

    def __init__(self, count: int, lost: int, trained: list[Any]) -> None:
        self.contexts = {
            at: Context(run_id=1, node_id=at, node_config={}, state=RecordDict(), run_config={})
            for at in range(1, count + 1)
        }
        self.lost = set(range(1, lost + 1))
        self.clocks = {at: Clock() for at in self.contexts}
        self.line = Clock()
        self.stages = 0
        self.sent = dict.fromkeys(self.contexts, 0)
        self._trained = trained

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        """Answers of all; of lost ones none from the third stage on."""
        self.stages += 1
        answers = []
        for message in messages:
            node = message.metadata.dst_node_id
            if self.stages >= 3 and node in self.lost:
                continue
            with self.line:
                message.content = copy.deepcopy(message.content)  # the mod takes things out of what it is sent
            with self.clocks[node]:
                answer = mod.secaggplus_mod(message, self.contexts[node], self._fit)
            told = answer.content.config_records[RECORD_KEY_CONFIGS]
            self.sent[node] += sum(_size(value) for value in told.values())
            answers.append(answer)
        return answers

    def _fit(self, message: Message, _context: Context) -> Message:
        parameters = ndarrays_to_parameters(self._trained)
        result = FitRes(Status(Code.OK, ""), parameters, SAMPLES, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def whole_round(count: int, lost: int, base: list[Any], trained: list[Any]) -> dict[str, Any]:
    """All four stages, by Flower's workflow."""
    nodes = Nodes(count, lost, trained)
    TaskIdentity.task_id = TaskIdentity.run_id = 1  # what its own processes are started with
    TaskIdentity.node_id = 0
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        ServerConfig(num_rounds=1),
        FedAvg(fraction_fit=1.0, min_fit_clients=count, min_available_clients=count),
    )
    for node in nodes.contexts:
        context.client_manager.register(GridClientProxy(node, nodes, 1))  # type: ignore[arg-type]
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters(base), keep_input=False
    )
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=THRESHOLD)
    with Clock() as whole:
        workflow(nodes, context)  # type: ignore[arg-type]
    found = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=False)
    )
    alive = [at for at in nodes.contexts if at not in nodes.lost]
    elsewhere = [nodes.line, *nodes.clocks.values()]
    return {
        "client": statistics.median(nodes.clocks[at].seconds for at in alive),
        "client_cpu": statistics.median(nodes.clocks[at].cpu for at in alive),
        "server": whole.seconds - sum(each.seconds for each in elsewhere),
        "server_cpu": whole.cpu - sum(each.cpu for each in elsewhere),
        "bytes": statistics.median(nodes.sent[at] for at in alive),
        "error": max(float(np.abs(one - other).max()) for one, other in zip(found, trained, strict=True)),
    }


def one_client(neighbours: int, threshold: int, trained: list[Any]) -> dict[str, Any]:
    """One client's stages, by the functions that its mod calls; what its neighbours would send is made by this one's
    keys, and is as long."""
    state = mod.SecAggPlusState()
    state.nid = 1
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=THRESHOLD)
    setup = {
        Key.SAMPLE_NUMBER: neighbours + 1,
        Key.SHARE_NUMBER: neighbours + 1,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: workflow.clipping_range,
        Key.TARGET_RANGE: workflow.quantization_range,
        Key.MOD_RANGE: workflow.modulus_range,
        Key.MAX_WEIGHT: workflow.max_weight,
    }
    others = range(2, neighbours + 2)
    sent = 0
    with Clock() as clock:
        told = mod._setup(state, ConfigRecord(setup))
    sent += sum(_size(value) for value in told.values())
    keys = {"1": [state.pk1, state.pk2]}
    for at in others:
        keys[str(at)] = [mod.public_key_to_bytes(mod.generate_key_pairs()[1]) for _ in range(2)]
    with clock:
        told = mod._share_keys(state, ConfigRecord(keys))
    sent += sum(_size(value) for value in told.values())
    length = len(state.rd_seed_share_dict[1]), len(state.sk1_share_dict[1])
    parcels = [
        mod.encrypt(state.ss2_dict[at], share_keys_plaintext_concat(at, 1, bytes(length[0]), bytes(length[1])))
        for at in others
    ]
    parameters = ndarrays_to_parameters(trained)
    given = ConfigRecord({Key.CIPHERTEXT_LIST: parcels, Key.SOURCE_LIST: list(others)})
    with clock:
        told = mod._collect_masked_vectors(state, given, SAMPLES, parameters)
    sent += sum(_size(value) for value in told.values())
    alive = list(range(1, neighbours + 2))
    with clock:
        told = mod._unmask(state, ConfigRecord({Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: []}))
    sent += sum(_size(value) for value in told.values())
    return {"client": clock.seconds, "client_cpu": clock.cpu, "bytes": sent}


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_size, value)) if isinstance(value, list) else 8


def main() -> int:
    """Print what was found as one line of JSON."""
    logging.disable(logging.INFO)
    what, first, second, *files = sys.argv[1:]
    given = [arrays(Path(each)) for each in files]
    done = (
        whole_round(int(first), int(second), *given) if what == "round" else one_client(int(first), int(second), *given)
    )
    print(json.dumps({**done, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
