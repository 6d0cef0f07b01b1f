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
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.training import LocalTraining, Optimizer, Statistics, Trained
from torch import Tensor, nn

from concilia_client_node import objectives
from concilia_client_node.augmentation import as_input, as_training_input
from concilia_client_node.errors import Refused
from concilia_client_node.pictures import Pictures
from concilia_client_node.split import stratified_cap
from concilia_client_node.trainer import Outcome, Tensors, batches_of

PROGRESS_SECONDS = 0.5
STATISTICS_IMAGES, STATISTICS_SHARE, STATISTICS_BATCHES = 512, 16, 2
"""Of the training images, that statistics are estimated from: a sixteenth, but two batches at least and 512 at most. It
costs a fiftieth of an epoch, and more images are hardly better."""
SETTLED_STEPS = 50
"""From so many steps on, batch normalisation's running averages have forgotten the round's beginning (0.9^50 is 1 in
200) and come from weights that hardly move any more."""


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
    *,
    mixed: bool = False,
) -> Outcome:
    """Train `network` in place. `check` is called before each batch and may raise to stop. `correction` is added to the
    gradients of the parameters that have its names. With `mixed`, layers that bear it multiply in bfloat16, which has
    float32's exponents, so that losses need no scaling (Micikevicius et al., "Mixed Precision Training", ICLR 2018).

    Raises `Refused` where fewer than two images are there (batch normalisation needs two) or the loss is not finite.
    """
    chosen = stratified_cap(pictures.labels, local.max_images or len(pictures), seed)
    if len(chosen) < 2:
        raise Refused("two training images are needed, there are fewer")
    images = pictures.images[chosen] if len(chosen) < len(pictures) else pictures.images
    labels, shown = torch.tensor([pictures.labels[position] for position in chosen]), pictures.classification
    generator = torch.Generator().manual_seed(seed)
    head = last_layer(network)
    objective = objectives.Objective(local, labels, head.out_features, device)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions' own order
    first_loss = None
    if local.first_loss:
        first_loss = mean_loss(network, images, labels, local.batch_size, device, check, shown)
    _begin(network, head, local)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in parameters] if local.proximal_mu > 0 else []
    corrections = _matching(network, correction or {}, device)
    reach, lasting = 0.0, 0.0
    optimizer = optimizer_of(parameters, local)
    momentum = local.momentum if local.optimizer is Optimizer.SGD else 0.0
    batches = batches_of(len(chosen), local.batch_size)
    steps, step, told = local.epochs * batches, 0, time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and mixing draw from the global stream
        for _ in range(local.epochs):
            loss_sum, correct, seen = 0.0, 0, 0
            order = objectives.order(labels, local.balance, head.out_features, generator)
            for batch in torch.tensor_split(order, batches):
                check()
                rate = local.learning_rate * share_of_rate(local, step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                # This step moves by this gradient and by what momentum keeps of those before.
                lasting = momentum * lasting + 1.0
                reach += rate * lasting
                inputs = images[batch].to(device)
                inputs = as_training_input(inputs, generator, shown) if local.augment else as_input(inputs, shown)
                inputs, others, own = objective.mix(inputs)
                targets = labels[batch].to(device)
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    logits = network(inputs.contiguous(memory_format=torch.channels_last)).float()
                loss = objective(logits, targets, others, own)
                torch.autograd.backward(loss)
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
    is_off = local.augment or steps < SETTLED_STEPS
    if local.trained is Trained.ALL and local.statistics is Statistics.BATCH and is_off:
        estimate_statistics(network, images, local.batch_size, device, check, shown)
    network.to(memory_format=torch.contiguous_format)
    progress(1.0)
    lesions = len({pictures.lesions[position] for position in chosen})
    counts = None
    if local.class_counts:
        counts = tuple(torch.bincount(torch.tensor(pictures.labels), minlength=head.out_features).tolist())
    return Outcome(loss_sum / seen, correct / seen, len(chosen), lesions, reach, first_loss, counts)


def mean_loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
    shown: Classification = LESIONS,
) -> float:
    """The network's mean cross-entropy in nats, unweighted, as evaluation would find it; it is left evaluating."""
    network.eval()
    total = 0.0
    with torch.no_grad():
        for batch in torch.split(torch.arange(len(images)), batch_size):
            check()
            logits = network(as_input(images[batch].to(device), shown))
            total += float(nn.functional.cross_entropy(logits, labels[batch].to(device), reduction="sum"))
    return total / len(images)


def _matching(network: nn.Module, tensors: Tensors, device: torch.device) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with the tensors that have their names and shapes."""
    return [
        (parameter, torch.from_numpy(np.array(tensors[name], np.float32)).to(device))
        for name, parameter in network.named_parameters()
        if name in tensors and tensors[name].shape == tuple(parameter.shape)
    ]


def estimate_statistics(
    network: nn.Module,
    images: Tensor,
    batch_size: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
    shown: Classification = LESIONS,
) -> None:
    """Replace batch normalisation's running averages by averages under the final weights, of pictures as evaluation
    will see them.

    Augmented pictures have other statistics, with which a network that trained well answers four points of balanced
    accuracy worse. A short round has few steps besides, and running averages lag behind weights that just moved:
    averaged over hospitals they made early global models answer one class. Sources: Wu and Johnson, "Rethinking 'Batch'
    in BatchNorm" (2021), section 3; for the pictures Touvron et al., "Fixing the train-test resolution discrepancy"
    (NeurIPS 2019).
    """
    network.eval()
    norms = batch_normalisations(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    # Evenly spaced, so that every class has its share where rows are sorted.
    wanted = max(STATISTICS_BATCHES * batch_size, len(images) // STATISTICS_SHARE)
    some = torch.linspace(0, len(images) - 1, min(len(images), wanted, STATISTICS_IMAGES)).long()
    with torch.inference_mode():
        for offset in range(batches := batches_of(len(some), batch_size)):
            check()
            inputs = as_input(images[some[offset::batches]].to(device), shown)
            network(inputs.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def batch_normalisations(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """The layers that normalise by batches."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def last_layer(network: nn.Module) -> nn.Linear:
    """The layer that the logits come from, as wide as there are classes."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def share_of_rate(local: LocalTraining, step: int, steps: int) -> float:
    """The share of the learning rate at step `step` of `steps`, from 0: half a cosine from the round's first share to
    its last (Loshchilov and Hutter, 2017), and before that a line from nothing (Goyal et al., 2017)."""
    if step < (rising := local.warm_up * steps):
        return local.rate_start * (step + 1) / (rising + 1)
    over = local.rate_start - local.rate_end
    falling = local.rate_end + over * (1 + math.cos(math.pi * step / steps)) / 2
    return min(falling, max(local.rate_start, local.rate_end))  # rounded, the sum may be a last bit above both


def optimizer_of(parameters: list[nn.Parameter], local: LocalTraining) -> torch.optim.Optimizer:
    """What takes a job's local steps; the learning rate is set before each."""
    if local.optimizer is Optimizer.ADAMW:
        return torch.optim.AdamW(parameters, lr=local.learning_rate, weight_decay=local.weight_decay)
    return torch.optim.SGD(parameters, lr=local.learning_rate, momentum=local.momentum, weight_decay=local.weight_decay)


def _begin(network: nn.Module, head: nn.Linear, local: LocalTraining) -> None:
    """Have the network train. Where its last layer alone moves, the rest is as in evaluation, statistics included.

    Batch normalisation that keeps its statistics is as in evaluation, but for its weights: hospitals whose pictures
    differ then train the very network that all of them together evaluate. Source: Zhong, Chen and Chao, "Making Batch
    Normalization Great in Federated Deep Learning" (2023).
    """
    network.train()
    if local.statistics is Statistics.KEPT:
        for norm in batch_normalisations(network):
            norm.eval()
    if local.trained is Trained.HEAD:
        network.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in head.parameters():
            parameter.requires_grad_(True)
