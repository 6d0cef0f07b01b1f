"""The server: Flower's FedAvg, with the time at which each round begins written down."""

import json
import math
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that remembers when its rounds began."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.began: list[float] = []

    def configure_train(self, *arguments: object, **named: object) -> object:
        """The beginning of a round."""
        self.began.append(time.time())
        return super().configure_train(*arguments, **named)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config = context.run_config
    clients = int(config["clients"])
    # flwr packs an app without what lies beside it, so the shapes come as a file's name.
    shapes = json.loads(Path(str(config["report"])).with_name("shapes.json").read_text())
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(math.prod(shape), np.float32).reshape(shape) for shape in shapes]
    groups = int(config["tensors"])
    if groups < len(arrays):
        flat = np.concatenate([array.ravel() for array in arrays])
        arrays = np.array_split(flat, groups)
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
    )
    first = float(arrays[0].flat[0])
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=int(config["rounds"]), timeout=3600
    )
    strategy.began.append(time.time())
    last = float(result.arrays.to_numpy_ndarrays()[0].flat[0])
    Path(str(config["report"])).write_text(json.dumps({"began": strategy.began, "moved": last - first}))
