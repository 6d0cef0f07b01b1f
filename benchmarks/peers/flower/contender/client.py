"""A client that adds a constant to every value and sends all of them back."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

STEP = np.float32(2**-10)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    updated = ArrayRecord([array + STEP for array in arrays])
    content = RecordDict(
        {"arrays": updated, "metrics": MetricRecord({"num-examples": 100, "value": float(arrays[0].flat[0])})}
    )
    return Message(content=content, reply_to=message)
