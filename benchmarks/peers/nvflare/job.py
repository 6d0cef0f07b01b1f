"""NVFlare's side of the comparison: its own FedAvg in a POC of real processes.

`python job.py CLIENTS ROUNDS MODEL REPORTS`.

The workspace is where NVFLARE_POC_WORKSPACE says. Ends when the job has ended and the processes are stopped.
"""

import sys
from pathlib import Path

from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import PocEnv

if __name__ == "__main__":
    clients, rounds, model, reports = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    recipe = NumpyFedAvgRecipe(
        name="contender",
        initial_ckpt=model,
        min_clients=clients,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=f"--report {reports}",
    )
    run = recipe.execute(PocEnv(num_clients=clients))
    print(run.get_status(), run.get_result())
