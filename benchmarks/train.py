"""How quickly a hospital trains: images a second of its epoch beside a bare PyTorch loop: `make bench-train`.

The bare loop has the same network, in the same order of memory, with the same optimizer and batches, which are in
memory already as the network takes them: nothing is augmented, counted, told or checked. Ours is the nodes' own
`training.train` as it is, augmentation, balance and the statistics at its end included, on decoded pictures as a node
keeps them. They take turns, epoch by epoch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from concilia_client_node import check, dataset, networks, pictures, training
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import stratified_cap
from concilia_kit import logs
from concilia_kit.wire.training import Architecture, Balance, LocalTraining
from torch import nn

from benchmarks import results
from benchmarks.federated_sites import folder_of

_CPU = torch.device("cpu")
GOAL = 0.95


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and Markdown."""
    options = _options(arguments)
    logs.configure("bench-train", "text", "WARNING")
    torch.set_num_threads(options.threads)
    rows = []
    with folder_of(options.data) as data, tempfile.TemporaryDirectory() as scratch:
        folder = dataset.read(data)
        site = dataset.choose(folder, check.choices(folder, "auto")[0], 0)
        for size in options.sizes:
            began = time.perf_counter()
            decoded = pictures.decode_site(site, size, Path(scratch), options.threads)
            decoding = (len(decoded.training) + len(decoded.held_out)) / (time.perf_counter() - began)
            some = _some(decoded.training, options.images)
            for arch in options.archs:
                rows.append(_measured(arch, size, some, options) | {"decoded a second": decoding})
                print(f"  {arch} at {size} pixels: {rows[-1]['share']:.3f}", file=sys.stderr, flush=True)
    table = _table(rows, folder.source, options)
    print(table)
    document = {"data": folder.source, "images": options.images, "batch": options.batch, "rows": rows}
    print(f"\nall samples: {results.write('train', document, table, options.output)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in HAM10000's layout; without it lesions are drawn")
    default = [Architecture.MOBILENET_V2, Architecture.RESNET18]
    parser.add_argument("--archs", nargs="+", type=Architecture, default=default)
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 224], help="side of the input, pixels")
    parser.add_argument("--images", type=int, default=640, help="of an epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def _some(whole: Pictures, count: int) -> Pictures:
    chosen = stratified_cap(whole.labels, count, 0)
    return Pictures(
        whole.images[chosen], tuple(whole.labels[at] for at in chosen), tuple(whole.lesions[at] for at in chosen)
    )


def _measured(arch: Architecture, size: int, some: Pictures, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds an epoch of both, taking turns; the first of each is thrown away."""
    local = LocalTraining(
        batch_size=options.batch, image_size=size, learning_rate=0.001, balance=Balance.LOGIT, max_images=None
    )
    ours, bare = networks.build(arch), networks.build(arch).to(memory_format=torch.channels_last)
    batches = [
        (as_input(some.images[part]).contiguous(memory_format=torch.channels_last), torch.tensor(some.labels)[part])
        for part in torch.tensor_split(torch.arange(len(some)), -(-len(some) // options.batch))
    ]
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.001, momentum=local.momentum, weight_decay=local.weight_decay)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for at in range(options.repetitions + 1):
        for name, epoch in (
            ("ours", lambda: training.train(ours, some, local, 0, _CPU)),
            ("bare", lambda: _bare(bare, optimizer, batches)),
        ):
            took = _seconds(epoch)
            if at:
                seconds[name].append(took)
    rates = {name: len(some) / statistics.median(each) for name, each in seconds.items()}
    shares = sorted(theirs / mine for mine, theirs in zip(seconds["ours"], seconds["bare"], strict=True))
    return {
        "arch": arch.value, "size": size, "images": len(some), "seconds": seconds, "images a second": rates,
        "share": statistics.median(shares), "shares": shares,
    }  # fmt: skip


def _bare(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    network.train()
    loss_of = nn.CrossEntropyLoss()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_of(network(inputs), targets).backward()
        optimizer.step()


def _seconds(epoch: Callable[[], object]) -> float:
    began = time.perf_counter()
    epoch()
    return time.perf_counter() - began


def _table(rows: Sequence[dict[str, Any]], source: str, options: argparse.Namespace) -> str:
    lines = [
        f"{source}; epochs of {rows[0]['images']} images in batches of {options.batch}, {options.threads} threads, "
        f"median of {options.repetitions}. Goal: {GOAL:.0%} of the bare loop.",
        "",
        "| network | pixels | images/s | bare loop, images/s | share | from … to | pictures decoded/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rates = row["images a second"]
        lines.append(
            f"| {row['arch']} | {row['size']} | {rates['ours']:.0f} | {rates['bare']:.0f} | {row['share']:.3f} | "
            f"{row['shares'][0]:.3f} … {row['shares'][-1]:.3f} | {row['decoded a second']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
