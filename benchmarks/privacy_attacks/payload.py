"""What an attacker at the aggregator holds of a hospital: base and update, as files that the node's own code writes -
plain, masked for secure aggregation, or trained with differential privacy - and the gradient that it takes them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from concilia_client_node import accounting, networks, private_training, sampling, training
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Tensors
from concilia_kit import digests, encodings, masking
from concilia_kit.masking.words import Scale
from concilia_kit.signing import Domain, sign
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.encoding import PLAIN
from concilia_kit.wire.masking import Roster, SecureAggregation, SignedKeys
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.training import Architecture, Balance, LocalTraining
from eth_account import Account
from torch import Tensor

DELTA = 1e-5
DEVICE = torch.device("cpu")
_DOMAIN = Domain(chain_id=1337, contract="0x" + "0" * 39 + "1")
_JOB = "0" * 64
_STAGES = SecureAggregation()


def one_step(images: int, size: int, rate: float = 1.0) -> LocalTraining:
    """The task from which most can be read: one plain step on all of so many pictures, which a coordinator may ask
    for."""
    return LocalTraining(
        epochs=1,
        batch_size=max(images, 2),
        learning_rate=rate,
        momentum=0.0,
        weight_decay=0.0,
        image_size=size,
        balance=Balance.NONE,
        augment=False,
    )


def fresh(architecture: Architecture, path: Path, seed: int) -> Path:
    """A base as a job's first round has it without weights of its own: written to `path`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks.save(networks.build(architecture), path)
    return path


def trained(architecture: Architecture, base: Path, pictures: Pictures, local: LocalTraining, seed: int) -> Tensors:
    """A hospital's training of one round from the base's file."""
    network = networks.load(architecture, base, classes=len(pictures.classification.classes))
    training.train(network, pictures, local, seed, DEVICE)
    return networks.tensors(network)


def trained_privately(
    architecture: Architecture, base: Path, pictures: Pictures, local: LocalTraining, privacy: Privacy
) -> Tensors:
    """The same with differential privacy; its randomness is the system's, and of no seed."""
    network = networks.load(architecture, base, classes=len(pictures.classification.classes))
    private_training.train(network, pictures, local, privacy, DEVICE)
    return networks.tensors(network)


def privacy_for(epsilon: float, local: LocalTraining, lesions: int) -> Privacy:
    """Noise with which a whole `epsilon` goes into this one training."""
    planned = sampling.planned(local, Privacy(noise=1.0, delta=DELTA), lesions)
    return Privacy(noise=accounting.noise_for(epsilon, DELTA, planned.rate, planned.steps), delta=DELTA)


def plain(path: Path, tensors: Tensors, base: Path) -> Path:
    """An update's file as it is sent without secure aggregation."""
    encodings.encode(path, PLAIN, tensors, TensorFile.open(base))
    return path


def masked(
    folder: Path, cohort: Sequence[Tensors], base: Path, samples: Sequence[int], *, bare: bool = False
) -> tuple[list[Path], Roster]:
    """Updates' files of a whole cohort, in its order, each masked as its node does it, and the roster. `bare`: with all
    masks taken off again, to see that it is the masks that protect."""
    accounts = sorted((Account.create() for _ in cohort), key=lambda account: int(account.address, 16))
    file = TensorFile.open(base)
    secrets = [masking.Secrets.new() for _ in cohort]
    signed = []
    for account, own, images in zip(accounts, secrets, samples, strict=True):
        keys = masking.advertise(
            own, hospital=account.address, job=_JOB, round_=1, base=digests.of_file(base), samples=images
        )
        signed.append(SignedKeys(keys=keys, signature=sign(keys.statement(), _DOMAIN, account)))
    roster = Roster(members=tuple(signed), threshold=_STAGES.threshold)
    written = []
    for account, own, images, tensors in zip(accounts, secrets, samples, cohort, strict=True):
        path = folder / f"{account.address}.safetensors"
        masks = masking.masks(own, roster, account.address, roster.hospitals)
        if bare:
            masks = (*masks, *(each._replace(sign=-each.sign) for each in masks))
        masking.write(path, tensors, file, masks, roster, samples=images, bound=_STAGES.bound)
        written.append(path)
    return written, roster


def gradient(base: Path, update: Path, local: LocalTraining, names: frozenset[str]) -> dict[str, Tensor]:
    """What an attacker takes a plain update of `one_step` for: (base - update) / rate, by parameter's name."""
    before, after = TensorFile.open(base), TensorFile.open(update)
    return {
        name: torch.from_numpy((before.tensor(name) - after.tensor(name)) / np.float32(local.learning_rate))
        for name in before
        if name in names
    }


def gradient_of_words(
    base: Path, update: Path, local: LocalTraining, names: frozenset[str], roster: Roster
) -> dict[str, Tensor]:
    """What an attacker takes a masked update for who reads its words as if they were a sum already."""
    before, taken = TensorFile.open(base), as_if_a_sum(base, update, roster)
    return {
        name: torch.from_numpy(((before.tensor(name) - each) / local.learning_rate).astype(np.float32))
        for name, each in taken.items()
        if name in names
    }


def as_if_a_sum(base: Path, update: Path, roster: Roster) -> Tensors:
    """The model that a masked update would be if its words were a sum, by one hospital of the cohort's samples."""
    before, words = TensorFile.open(base), TensorFile.open(update)
    scale = Scale.of(roster, _STAGES.bound, before)
    more = len(roster.members)
    return {name: before.tensor(name) + words.tensor(name) * (scale.steps[name] * more) for name in words}


def mean_gradient(some: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of updates that weigh the same: what is left to see of them in their sum."""
    return {name: torch.stack([each[name] for each in some]).mean(0) for name in some[0]}
