"""Local training: one hospital's part of a round.

Given the same pictures, weights, hyperparameters and seed, one thread on one kind of processor gives the same weights
to the last bit. Sources: FedAvg, McMahan et al. (2017); FedProx, Li et al. (2020).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from concilia_kit.lesions import CLASSES
from concilia_kit.wire.training import Balance, LocalTraining
from torch import Tensor, nn

from concilia_client_node.augmentation import as_input, as_training_input
from concilia_client_node.errors import Refused
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import stratified_cap
from concilia_client_node.trainer import Outcome, Tensors

PROGRESS_SECONDS = 0.5
REPETITION = 0.99  # b: after about a hundred images of a class, another one adds little
STATISTICS_IMAGES = 512
FINAL_RATE = 0.1  # of the learning rate, at the end of the round's cosine


def class_weights(labels: Tensor) -> Tensor:
    """Loss weights w_c proportional to (1 - b) / (1 - b^n_c) with b = `REPETITION`, scaled to a mean of 1 over the
    classes that are there; 0 for absent classes. n_c: images of class c.

    Unlike 1 / n_c, it keeps the two images of a rare class from steering every batch that they are in.
    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019).
    """
    counts = torch.bincount(labels, minlength=len(CLASSES)).double()
    weights = torch.where(counts > 0, (1 - REPETITION) / (1 - REPETITION**counts), 0.0)
    return (weights * (counts.count_nonzero() / weights.sum())).float()


def sampling_weights(labels: Tensor) -> Tensor:
    """The weight with which each image is drawn, 1 / n_c: every class that is there comes equally often."""
    return 1 / torch.bincount(labels, minlength=len(CLASSES)).double()[labels]


def add_proximal_gradient(parameters: Iterable[Tensor], anchors: Iterable[Tensor], mu: float) -> None:
    """Add mu * (w - w_global) to each gradient: the derivative of FedProx's term mu / 2 * ||w - w_global||^2."""
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=mu)


def train(
    network: nn.Module,
    pictures: Pictures,
    local: LocalTraining,
    seed: int,
    device: torch.device,
    progress: Callable[[float], None] = lambda _fraction: None,
    check: Callable[[], None] = lambda: None,
    correction: Tensors | None = None,
) -> Outcome:
    """Train `network` in place. `check` is called before each batch and may raise to stop. `correction` is added to the
    gradients of the parameters that have its names.

    Raises `Refused` where fewer than two images are there (batch normalisation needs two) or the loss is not finite.
    """
    chosen = stratified_cap(pictures.labels, local.max_images or len(pictures), seed)
    if len(chosen) < 2:
        raise Refused("two training images are needed, there are fewer")
    images = pictures.images[chosen] if len(chosen) < len(pictures) else pictures.images
    labels = torch.tensor([pictures.labels[position] for position in chosen])
    generator = torch.Generator().manual_seed(seed)
    weighted = local.balance is Balance.LOSS
    loss_of = nn.CrossEntropyLoss(weight=class_weights(labels).to(device) if weighted else None)
    network.to(device).train()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in parameters] if local.proximal_mu > 0 else []
    corrections = _matching(network, correction or {}, device)
    first_loss = mean_loss(network, images, labels, local.batch_size, device, check) if local.first_loss else None
    reach, lasting = 0.0, 0.0
    optimizer = torch.optim.SGD(
        parameters, lr=local.learning_rate, momentum=local.momentum, weight_decay=local.weight_decay
    )
    batches = _batches_of(len(chosen), local.batch_size)
    steps, step, told = local.epochs * batches, 0, time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global stream
        for _ in range(local.epochs):
            loss_sum, correct, seen = 0.0, 0, 0
            order = _order(labels, local.balance, generator)
            for batch in torch.tensor_split(order, batches):
                check()
                rate = local.learning_rate * _cosine(step / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                # This step moves by this gradient and by what momentum keeps of those before.
                lasting = local.momentum * lasting + 1.0
                reach += rate * lasting
                inputs = images[batch].to(device)
                inputs = as_training_input(inputs, generator) if local.augment else as_input(inputs)
                targets = labels[batch].to(device)
                optimizer.zero_grad()
                logits = network(inputs)
                loss = loss_of(logits, targets)
                loss.backward()
                add_proximal_gradient(parameters if anchors else (), anchors, local.proximal_mu)
                for parameter, added in corrections:
                    if parameter.grad is not None:
                        parameter.grad.add_(added)
                optimizer.step()
                loss_sum += loss.item() * len(batch)
                correct += int((logits.argmax(1) == targets).sum())
                seen += len(batch)
                step += 1
                if time.monotonic() - told >= PROGRESS_SECONDS:
                    progress(step / steps)
                    told = time.monotonic()
    if not math.isfinite(loss_sum):
        raise Refused("training diverged: its loss is not finite; the job needs a lower learning rate")
    estimate_statistics(network, images, local.batch_size, device, check)
    progress(1.0)
    lesions = len({pictures.lesions[position] for position in chosen})
    return Outcome(loss_sum / seen, correct / seen, len(chosen), lesions, reach, first_loss)


def mean_loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> float:
    """The network's mean cross-entropy in nats, unweighted, as evaluation would find it; it is left training."""
    network.eval()
    total = 0.0
    with torch.no_grad():
        for batch in torch.split(torch.arange(len(images)), batch_size):
            check()
            logits = network(as_input(images[batch].to(device)))
            total += float(nn.functional.cross_entropy(logits, labels[batch].to(device), reduction="sum"))
    network.train()
    return total / len(images)


def _matching(network: nn.Module, tensors: Tensors, device: torch.device) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with the tensors that have their names and shapes."""
    return [
        (parameter, torch.from_numpy(np.array(tensors[name], np.float32)).to(device))
        for name, parameter in network.named_parameters()
        if name in tensors and tensors[name].shape == tuple(parameter.shape)
    ]


def estimate_statistics(
    network: nn.Module, images: Tensor, batch_size: int, device: torch.device, check: Callable[[], None] = lambda: None
) -> None:
    """Replace batch normalisation's running averages by averages under the final weights, as evaluation will see them.

    A round has few steps, and running averages lag behind weights that just moved: averaged over hospitals they made
    early global models answer one class. Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    # Evenly spaced, so that every class has its share where rows are sorted.
    some = torch.linspace(0, len(images) - 1, min(len(images), STATISTICS_IMAGES)).long()
    with torch.no_grad():
        for offset in range(batches := _batches_of(len(some), batch_size)):
            check()
            network(as_input(images[some[offset::batches]].to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batches_of(images: int, batch_size: int) -> int:
    """Batches an epoch, of sizes that differ by one at most: a small last batch would upset batch normalisation, which
    cannot learn from a single image at all."""
    return min(math.ceil(images / batch_size), images // 2)


def _order(labels: Tensor, balance: Balance, generator: torch.Generator) -> Tensor:
    """An epoch's images: each once, or drawn with replacement so that classes come equally often."""
    if balance is Balance.SAMPLING:
        return torch.multinomial(sampling_weights(labels), len(labels), replacement=True, generator=generator)
    return torch.randperm(len(labels), generator=generator)


def _cosine(done: float) -> float:
    """Half a cosine from 1 to `FINAL_RATE` within the round (Loshchilov and Hutter, 2017)."""
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * done)) / 2
