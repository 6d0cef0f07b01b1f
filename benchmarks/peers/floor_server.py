"""The least that a federated server can do in this language: streamed bodies, SHA-256, a mean by blocks.

`python floor_server.py FOLDER PORT CLIENTS ROUNDS`; FOLDER/model holds the first model. Plain FastAPI on uvicorn, no
promise kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse

BLOCK = 1 << 16


class Rounds:
    """The round that is open, and what came in it."""

    def __init__(self, folder: Path, clients: int, rounds: int) -> None:
        self.folder, self.clients, self.rounds = folder, clients, rounds
        self.at = 1
        self.came: set[int] = set()
        self.turned = asyncio.Condition()
        self.began = [time.time()]

    def fold(self) -> None:
        """The mean of all updates becomes the model."""
        maps = [np.memmap(self.folder / f"update-{at}", np.float32, "r") for at in sorted(self.came)]
        with (self.folder / "next").open("wb") as file:
            for start in range(0, maps[0].size, BLOCK):
                total = maps[0][start : start + BLOCK].astype(np.float64)
                for each in maps[1:]:
                    total += each[start : start + BLOCK]
                file.write((total / len(maps)).astype(np.float32).data)
        (self.folder / "next").replace(self.folder / "model")


def application(rounds: Rounds) -> FastAPI:
    """The server."""
    app = FastAPI()

    @app.get("/rounds/{number}")
    async def wait(number: int) -> dict[str, int]:
        async with rounds.turned:
            await rounds.turned.wait_for(lambda: rounds.at >= number)
        return {"round": rounds.at}

    @app.get("/model")
    def model() -> FileResponse:
        return FileResponse(rounds.folder / "model")

    @app.put("/updates/{client}")
    async def update(client: int, request: Request) -> dict[str, str]:
        digest = hashlib.sha256()
        with (rounds.folder / f"update-{client}").open("wb") as file:
            async for chunk in request.stream():
                digest.update(chunk)
                file.write(chunk)
        async with rounds.turned:
            rounds.came.add(client)
            if len(rounds.came) == rounds.clients:
                await asyncio.to_thread(rounds.fold)
                rounds.came.clear()
                rounds.at += 1
                rounds.began.append(time.time())
                rounds.turned.notify_all()
                if rounds.at > rounds.rounds:
                    (rounds.folder / "rounds.json").write_text(json.dumps(rounds.began))
        return {"digest": digest.hexdigest()}

    return app


if __name__ == "__main__":
    folder, port, clients, count = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    uvicorn.run(application(Rounds(folder, clients, count)), port=port, log_level="warning", ws="none")
