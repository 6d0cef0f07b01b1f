"""Local training with differential privacy: a hospital's part of a round by DP-SGD, in which the unit is the lesion.

Each step draws every lesion with the same probability, and of each that is drawn one of its pictures. A lesion's
gradient, which is that picture's, is cut to the clipping norm; Gaussian noise is added to their sum; and that is
divided by how many lesions were to be expected. So a lesion with all its pictures moves a step's sum by the clipping
norm at most, and whoever sees the result cannot tell well whether the hospital had it.

What one lesion does must not depend on which others were drawn. So there is neither batch normalisation, nor dropout,
nor stochastic depth in it, and each picture's augmentation has a seed of its own. Sources: Abadi et al., "Deep Learning
with Differential Privacy" (CCS 2016), algorithm 1; clipping is Opacus's (Yousefpour et al. 2021).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from concilia_kit import logs
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import LocalTraining, Optimizer, Trained
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from concilia_client_node import training
from concilia_client_node.augmentation import as_input, as_training_input
from concilia_client_node.errors import Refused
from concilia_client_node.pictures import Pictures
from concilia_client_node.randomness import SecretRandomness
from concilia_client_node.sampling import Sampled, planned
from concilia_client_node.trainer import Outcome, Tensors

GRADIENT_BYTES = 2**28
"""Of lesions' gradients at a time: those of large networks come a few lesions at once."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_log = logs.get(__name__)


def train(
    network: nn.Module,
    pictures: Pictures,
    local: LocalTraining,
    privacy: Privacy,
    device: torch.device,
    allow: Callable[[Sampled], None] = lambda _sampled: None,
    progress: Callable[[float], None] = lambda _fraction: None,
    check: Callable[[], None] = lambda: None,
    correction: Tensors | None = None,
    *,
    adapter: bool = False,
) -> Outcome:
    """Train `network` in place, as `training.train` does. `allow` is told what is about to be done before any lesion
    was looked at, and may raise. `adapter`: what trains is an adapter, over a trunk that stays.

    Two trainings of one task are never alike: all that is random is the system's. Neither loss nor accuracy are
    measured, which no noise would be on. Raises `Refused`.
    """
    lesions = _by_lesion(pictures)
    if not lesions:
        raise Refused("there is no lesion to train on")
    sampled = planned(local, privacy, len(lesions))
    allow(sampled)
    network.to(device)
    parameters = _begin(network, local.trained, adapter=adapter)
    secret = SecretRandomness()
    optimizer = Noised(
        training.optimizer_of(list(parameters.values()), local), privacy, sampled.rate * len(lesions), secret
    )
    added = Added(parameters, local.proximal_mu, correction or {}, device)
    optimizer.attach_step_hook(lambda _optimizer: added())
    gradients = Gradients(network, parameters, local.label_smoothing)
    momentum = local.momentum if local.optimizer is Optimizer.SGD else 0.0
    reach, lasting, told = 0.0, 0.0, time.monotonic()
    for step in range(sampled.steps):
        check()
        rate = local.learning_rate * training.share_of_rate(local, step, sampled.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        lasting = momentum * lasting + 1.0
        reach += rate * lasting
        drawn = draw(lesions, sampled.rate, secret)
        for some in gradients.parts(drawn):
            check()
            inputs = _inputs(pictures, some, secret, augment=local.augment).to(device)
            targets = torch.tensor([pictures.labels[position] for position in some], dtype=torch.long, device=device)
            optimizer.accumulate(gradients(inputs, targets))
        optimizer.step()
        if time.monotonic() - told >= training.PROGRESS_SECONDS:
            progress(step / sampled.steps)
            told = time.monotonic()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values()):
        raise Refused(
            "training diverged: its weights are not finite; the job needs a lower learning rate, or less noise"
        )
    network.eval()
    progress(1.0)
    images = min(len(pictures), local.max_images or len(pictures))
    return Outcome(None, None, images, len(lesions), reach, sampled=sampled)


def draw(lesions: Sequence[Sequence[int]], rate: float, secret: SecretRandomness) -> list[int]:
    """A Poisson sample: of each lesion, given as its pictures' positions, with probability `rate` one of them."""
    chance, which = secret.uniforms(len(lesions)), secret.uniforms(len(lesions))
    return [lesions[at][int(which[at] * len(lesions[at]))] for at in np.flatnonzero(chance < rate).tolist()]


class Gradients:
    """Gradients of single pictures' losses, with a network whose parts do not look from one picture to another."""

    def __init__(self, network: nn.Module, parameters: dict[str, nn.Parameter], label_smoothing: float = 0.0) -> None:
        self._network, self._parameters = network, parameters
        self._smoothing = label_smoothing
        size = sum(4 * parameter.numel() for parameter in parameters.values())
        self._at_once = max(1, GRADIENT_BYTES // size)
        self._of_each = vmap(grad(self._loss), in_dims=(None, 0, 0))

    def parts(self, drawn: Sequence[int]) -> list[Sequence[int]]:
        """What was drawn, in parts whose gradients there is room for."""
        return [drawn[start : start + self._at_once] for start in range(0, len(drawn), self._at_once)]

    def __call__(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """For each parameter the gradients of all pictures, (n, *its shape)."""
        values = {name: parameter.detach() for name, parameter in self._parameters.items()}
        found: dict[str, Tensor] = self._of_each(values, inputs, targets)
        return list(found.values())

    def _loss(self, values: dict[str, Tensor], picture: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(self._network, values, (picture.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, target.unsqueeze(0), label_smoothing=self._smoothing)


class Noised(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus's optimizer, which clips and sums; with noise of this node's own, of the system's randomness."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, privacy: Privacy, expected: float, secret: SecretRandomness
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=privacy.noise,
            max_grad_norm=privacy.clip,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._expected, self._secret = expected, secret

    def accumulate(self, gradients: Sequence[Tensor]) -> None:
        """Clip these lesions' gradients, one tensor a parameter, and add them to the step's sum. One that is not finite
        counts as nothing."""
        square = torch.stack([each.flatten(1).double().square().sum(1) for each in gradients]).sum(0)
        for parameter, each in zip(self.params, gradients, strict=True):
            parameter.grad_sample = torch.where(square.isfinite().view(-1, *[1] * (each.ndim - 1)), each, 0.0)
        self.clip_and_accumulate()
        for parameter in self.params:
            parameter.grad_sample = None

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002  # Opacus's signature
        """What the optimizer is to step by: the sum with its noise, of the lesions that were to be expected the
        mean."""
        self.add_noise()
        if self.step_hook is not None:
            self.step_hook(self)
        return True

    def add_noise(self) -> None:
        """See `DPOptimizer`. Added in float64 and rounded once; also where no lesion was drawn."""
        for parameter in self.params:
            noise = torch.from_numpy(self._secret.gaussians(parameter.numel())).view(parameter.shape)
            total = noise * (self.noise_multiplier * self.max_grad_norm)
            if parameter.summed_grad is not None:
                total += parameter.summed_grad.cpu()
            parameter.grad = (total / self._expected).to(parameter)
            parameter.summed_grad = None


class Added:
    """What goes onto the noised gradients, which no lesion has a part in: FedProx's pull, SCAFFOLD's correction."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], mu: float, correction: Tensors, device: torch.device
    ) -> None:
        self._parameters, self._mu = list(parameters.values()), mu
        self._anchors = [parameter.detach().clone() for parameter in self._parameters] if mu > 0 else []
        self._corrections = [
            (parameter, torch.from_numpy(np.array(correction[name], np.float32)).to(device))
            for name, parameter in parameters.items()
            if name in correction and correction[name].shape == tuple(parameter.shape)
        ]

    def __call__(self) -> None:
        """Add it to the parameters' gradients."""
        training.add_proximal_gradient(self._parameters if self._anchors else (), self._anchors, self._mu)
        for parameter, tensor in self._corrections:
            assert parameter.grad is not None, "the noise is on all of them"
            parameter.grad.add_(tensor)


def _by_lesion(pictures: Pictures) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for position, lesion in enumerate(pictures.lesions):
        found[lesion].append(position)
    return list(found.values())


def _begin(network: nn.Module, trained: Trained, *, adapter: bool) -> dict[str, nn.Parameter]:
    """Have what trains require gradients, and nothing else; by name. Raises `Refused`."""
    network.eval()  # for good: dropout's numbers would be shared out by who else is in the batch
    wanted = {id(each) for each in training.last_layer(network).parameters()} if trained is Trained.HEAD else None
    norms = [module for module in network.modules() if isinstance(module, _BATCH_NORMS)]
    if norms and wanted is None and not adapter:
        raise Refused(
            "batch normalisation mixes the lesions of a batch, so with privacy this network cannot be trained whole: "
            "the job needs one with group normalisation, an adapter, or the last layer alone in all of its rounds"
        )
    constant = {id(each) for norm in norms for each in norm.parameters(recurse=False)}
    if norms:
        _log.info("batch normalisation stays as it is, with privacy", layers=len(norms))
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) not in constant and (wanted is None or id(parameter) in wanted))
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _inputs(pictures: Pictures, some: Sequence[int], secret: SecretRandomness, *, augment: bool) -> Tensor:
    if not augment:
        return as_input(pictures.images[list(some)], pictures.classification)
    views = [
        as_training_input(
            pictures.images[[position]], torch.Generator().manual_seed(secret.seed()), pictures.classification
        )
        for position in some
    ]
    return torch.cat(views)
