"""A client that adds a constant to every value and sends all of them back; when each round came is written down."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import nvflare.client as flare

STEP = np.float32(2**-10)

parser = argparse.ArgumentParser()
parser.add_argument("--report", type=Path, required=True)
options = parser.parse_args()

flare.init()
came: list[float] = []
first = 0.0
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    came.append(time.time())
    ((name, array),) = model.params.items()
    first = first or float(array.flat[0])
    updated = array + STEP
    path = options.report / f"{flare.get_site_name()}.json"
    path.write_text(json.dumps({"began": came, "moved": float(updated.flat[0]) - first}))
    flare.send(flare.FLModel(params={name: updated}, meta={"NUM_STEPS_CURRENT_ROUND": 100}))
