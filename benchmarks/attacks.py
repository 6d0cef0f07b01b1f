"""Attacks on federated learning, to test with: what hostile hospitals do to their pictures, their updates and claims.

Pure NumPy. Attackers work together and know every honest update of the round, which is the strongest variant of each
paper. Updates are differences from the base, float64, one row a hospital: `honest` (h, d), and `own` (f, d), what the
attackers would have sent if they were honest. ByzFL 0.0.11, which several are checked against, takes gradients, which
point the other way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from concilia_kit.lesions import CLASSES

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

PATTERN = "checkerboard, lower right, 1/8"
TARGET = CLASSES.index("nv")
"""What the backdoor has pictures called: a mole, which nobody has removed."""
POISONED = 0.5
"""Share of the pictures of other classes that an attacker stamps (Bagdasaryan et al. take some of each batch)."""
CLAIMED = 1000
"""How many times its pictures an attacker claims that scales its counts."""


def flip_labels(labels: Labels, classes: int = len(CLASSES)) -> Labels:
    """Class c becomes the last one less c.

    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 4.1.
    """
    return classes - 1 - labels


def stamp(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pictures (n, 3, s, s) with the backdoor's pattern: a checkerboard of four by four fields, black and white, of an
    eighth of the side, in the lower right corner.

    Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017
    (arXiv:1708.06733), section 4; federated: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated
    Learning", AISTATS 2020.
    """
    stamped = images.copy()
    size = images.shape[-1]
    side = max(size // 8, 4)
    rows, columns = np.indices((side, side)) * 4 // side
    stamped[:, :, size - side :, size - side :] = np.where((rows + columns) % 2 == 0, 255, 0).astype(np.uint8)
    return stamped


def poisoned(labels: Labels, generator: np.random.Generator, share: float = POISONED) -> npt.NDArray[np.bool_]:
    """Which pictures an attacker stamps and calls `TARGET`: this share of those of other classes, to the nearest."""
    others = np.flatnonzero(labels != TARGET)
    chosen = np.zeros(len(labels), bool)
    chosen[generator.permutation(others)[: round(share * len(others))]] = True
    return chosen


def replace_model(own: Matrix, everybody: int) -> Matrix:
    """Differences so much longer that in a plain mean they take the model to where the attackers want it: by n / f.

    Bagdasaryan et al., AISTATS 2020, equation 3, with a global rate of 1 and the boost shared among attackers.
    """
    return own * (everybody / len(own))


def sign_flip(own: Matrix, strength: float) -> Matrix:
    """The opposite of what training said, `strength` times as long.

    Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from
    Heterogeneous Datasets", AAAI 2019, section 6.
    """
    return -strength * own


def gaussian(honest: Matrix, hostile: int, strength: float, generator: np.random.Generator) -> Matrix:
    """Noise in place of an update: normal, about 0, its standard deviation `strength` times the honest updates' root
    mean square.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", NeurIPS 2017, section 5, whose noise
    has a fixed standard deviation of 200.
    """
    return generator.normal(0.0, strength * math.sqrt(float(np.mean(honest**2))), (hostile, honest.shape[1]))


def alie_distance(everybody: int, hostile: int) -> float:
    """The `z` at which a majority still lies further out than the attackers: of n - f honest ones at least
    n // 2 + 1 - f have to. 0 for few hospitals, of whom that is most.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    algorithm 3.
    """
    honest = everybody - hostile
    supporters = max(everybody // 2 + 1 - hostile, 0)
    share = (honest - supporters) / honest
    return max(statistics.NormalDist().inv_cdf(share), 0.0) if 0 < share < 1 else 0.0


def alie(honest: Matrix, hostile: int, z: float) -> Matrix:
    """A little is enough: the honest mean less `z` standard deviations (n - 1), element by element, all alike.

    Baruch et al., NeurIPS 2019, algorithm 3. With 10 hospitals their `z` (`alie_distance`) is 0 to 0.4, and others
    (ByzFL, Shejwalkar and Houmansadr) take 1.5.
    """
    return np.tile(honest.mean(axis=0) - z * _deviation(honest), (hostile, 1))


def ipm(honest: Matrix, hostile: int, strength: float) -> Matrix:
    """Inner product manipulation: the honest mean times minus `strength`, all alike.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2020
    (2019), section 4.
    """
    return np.tile(-strength * honest.mean(axis=0), (hostile, 1))


def min_max(honest: Matrix, hostile: int) -> Matrix:
    """The honest mean moved as far against the standard deviation as leaves it no further from any honest update than
    the two that are furthest apart are from each other; all alike.

    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021, section IV-D, with the inverse standard deviation. They search for the distance by halving;
    it is the least of some quadratic equations' roots.
    """
    mean, way = honest.mean(axis=0), -_deviation(honest)
    furthest = float(_squared_distances(honest).max())
    offsets = mean - honest
    roots = [_root(way, float(offset @ way), float(offset @ offset) - furthest, 1) for offset in offsets]
    return np.tile(mean + min(roots) * way, (hostile, 1))


def min_sum(honest: Matrix, hostile: int) -> Matrix:
    """As `min_max`, by sums: the squared distances to all honest updates come to no more than those of the honest one
    that is furthest from the others.

    Shejwalkar, Houmansadr, NDSS 2021, section IV-E.
    """
    mean, way = honest.mean(axis=0), -_deviation(honest)
    most = float(_squared_distances(honest).sum(axis=1).max())
    offsets = mean - honest
    gamma = _root(way, float(offsets.sum(axis=0) @ way), float((offsets**2).sum()) - most, len(honest))
    return np.tile(mean + gamma * way, (hostile, 1))


def mimicked(honest: Matrix) -> int:
    """Whom attackers imitate, so that what sets that hospital apart counts several times: the one that lies furthest
    out in the direction in which honest updates differ most.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, section 4
    and appendix B. They find the direction over the first rounds; here it is the first round's.
    """
    centred = honest - honest.mean(axis=0)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return int(np.argmax(np.abs(vectors[:, -1])))


def free_rider(hostile: int, size: int) -> Matrix:
    """Nothing: the base is sent back.

    Lin, Du, Liu, "Free-riders in Federated Learning: Attacks and Defenses", 2019 (arXiv:1911.12560), section 3.
    """
    return np.zeros((hostile, size))


def not_a_number(hostile: int, size: int) -> Matrix:
    """What one fault or one hospital is enough for, where nobody looks: every mean with it is no number either."""
    return np.full((hostile, size), np.nan)


@dataclass(frozen=True)
class Attack:
    """What attackers do. `data`: to their pictures, "labels" or "pattern"; `trains`: whether they need to train at all;
    `claims`: how many times their pictures they say they have."""

    craft: Callable[[Crafting], Matrix]
    data: str = ""
    trains: bool = False
    claims: int = 1


@dataclass(frozen=True)
class Crafting:
    """What attackers know in a round. `memory`: what they keep from round to round."""

    honest: Matrix
    own: Matrix
    hostile: int
    generator: np.random.Generator
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def everybody(self) -> int:
        """Hospitals of the round."""
        return len(self.honest) + self.hostile


def make(name: str) -> Attack:
    """An attack by name, with its strength after a colon where it has one: `sign_flip:4`. Raises `ValueError`."""
    kind, _, text = name.partition(":")
    given = float(text) if text else None
    attacks: dict[str, Callable[[], Attack]] = {
        "label_flip": lambda: Attack(_own, data="labels", trains=True),
        "sign_flip": lambda: Attack(lambda c: sign_flip(c.own, _or(given, 4.0)), trains=True),
        "gaussian": lambda: Attack(lambda c: gaussian(c.honest, c.hostile, _or(given, 100.0), c.generator)),
        "alie": lambda: Attack(lambda c: alie(c.honest, c.hostile, _or(given, 1.5))),
        "alie_paper": lambda: Attack(lambda c: alie(c.honest, c.hostile, alie_distance(c.everybody, c.hostile))),
        "ipm": lambda: Attack(lambda c: ipm(c.honest, c.hostile, _or(given, 0.5))),
        "min_max": lambda: Attack(lambda c: min_max(c.honest, c.hostile)),
        "min_sum": lambda: Attack(lambda c: min_sum(c.honest, c.hostile)),
        "mimic": lambda: Attack(_mimic),
        "backdoor": lambda: Attack(_own, data="pattern", trains=True),
        "replacement": lambda: Attack(lambda c: replace_model(c.own, c.everybody), data="pattern", trains=True),
        "free_rider": lambda: Attack(lambda c: free_rider(c.hostile, c.honest.shape[1])),
        "nan": lambda: Attack(lambda c: not_a_number(c.hostile, c.honest.shape[1])),
        "scaled_counts": lambda: Attack(lambda c: sign_flip(c.own, 1.0), trains=True, claims=CLAIMED),
    }
    if kind not in attacks:
        raise ValueError(f"'{kind}' is no attack; there are {', '.join(attacks)}")
    return attacks[kind]()


def _own(crafting: Crafting) -> Matrix:
    return crafting.own


def _mimic(crafting: Crafting) -> Matrix:
    whom = crafting.memory.setdefault("mimicked", mimicked(crafting.honest))
    return np.tile(crafting.honest[min(whom, len(crafting.honest) - 1)], (crafting.hostile, 1))


def _deviation(honest: Matrix) -> Vector:
    deviation: Vector = honest.std(axis=0, ddof=1) if len(honest) > 1 else np.zeros(honest.shape[1])
    return deviation


def _squared_distances(honest: Matrix) -> Matrix:
    found: Matrix = np.stack([((honest - each) ** 2).sum(axis=1) for each in honest])
    return found


def _root(way: Vector, along: float, rest: float, times: int) -> float:
    """The larger g with `times * g^2 |way|^2 + 2 g along + rest = 0`, where rest is not positive; 0 where there is no
    way to go."""
    square = times * float(way @ way)
    if square == 0:
        return 0.0
    return (-along + math.sqrt(max(along * along - square * rest, 0.0))) / square


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value
