"""Secure aggregation as jobs ask for it, as hospitals and aggregator carry it out, and as a model's file keeps it.

The aggregator learns the sum of a round's updates and no single one. A round has four stages: hospitals advertise keys,
hand each other sealed shares of two secrets, send their updates masked, and reveal shares, of one secret or the other,
once they agree who is in the sum. The documents here are those of the stages; `concilia_kit.masking` is what makes and
checks them.

Sources: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017); Bell et al.,
"Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (2020).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from concilia_kit import digests
from concilia_kit.digests import Digest, JobId
from concilia_kit.signing import Address, Signature, Statement
from concilia_kit.strict import NO_TEXT, Integer, IntegerOrNone, Number, NumberOrNone
from concilia_kit.wire.base import Wire

KEYS = "concilia.masking.keys"
SURVIVORS = "concilia.masking.survivors"
"""What hospitals sign (`signing.Statement`): their keys of a round, and who is in its sum."""

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
"""32 bytes as lower-case hexadecimal: a public key (X25519, RFC 7748) or a digest."""
Seed = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", strict=True)]
"""16 secret bytes as lower-case hexadecimal."""
Share = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
"""One of Shamir's shares of a `Seed`, 32 bytes big-endian as hexadecimal; where it is of is the holder's place."""
Sealed = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64,400}$", strict=True)]
"""Nonce, ciphertext and tag (ChaCha20-Poly1305, RFC 8439) as hexadecimal."""

MOST_MEMBERS = 10_000
FEWEST_MEMBERS = 3
"""Hospitals of a sum: of two, each knows the other's update."""


class SecureAggregation(Wire):
    """What a job asks for whose aggregator is to see sums only."""

    threshold: Number = Field(
        default=2 / 3,
        gt=0.5,
        le=1,
        description="share of a round's hospitals, or of a group's, without whom nothing is revealed; more than half, "
        "so that nobody can have two different sums agreed to",
    )
    group: IntegerOrNone = Field(
        default=None,
        ge=3,
        le=1000,
        exclude_if=lambda group: group is None,
        description="fewest hospitals of a group: robust strategies go by groups' sums; one sum of all without it",
    )
    bound: Number = Field(
        default=4.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="largest change of a value that can be told, in multiples of its tensor's largest in the base, or "
        "of one where that is less; what is beyond is cut off",
    )
    norm: NumberOrNone = Field(
        default=None,
        gt=0,
        le=1e12,
        allow_inf_nan=False,
        exclude_if=lambda norm: norm is None,
        description="longest change (L2) that a hospital may make: its node shortens what is longer, and attests it",
    )
    stage_seconds: Integer = Field(
        default=60, ge=2, le=86400, description="until a stage goes on without those that are not heard of"
    )


class Stage(StrEnum):
    """Where a round's masking stands; `INPUTS` is the training itself, and the masked updates."""

    KEYS = "keys"
    SHARES = "shares"
    INPUTS = "inputs"
    CONSENT = "consent"
    REVEAL = "reveal"
    OVER = "over"
    ABORTED = "aborted"


class MaskingKeys(Wire):
    """What a hospital's node advertises for one round, made anew for it.

    `sealing`: the public key that shares for it are sealed to. `masking`: the one that pairwise masks come from.
    `commitment`: SHA-256 of its self-mask's seed, so that nobody can say later that it was another. `samples`: most
    training images that may weigh; the sum over the roster is the unit of weights.
    """

    hospital: Address
    job: JobId
    round: Integer = Field(ge=1, lt=2**32)
    base: Digest
    sealing: Key
    masking: Key
    commitment: Key
    samples: Integer = Field(ge=1, lt=2**53)

    def statement(self) -> Statement:
        """What the hospital signs of it."""
        return Statement(name=KEYS, digest=digests.of_json(self.model_dump(mode="json")))


class SignedKeys(Wire):
    """A hospital's keys of a round with its signature."""

    keys: MaskingKeys
    signature: Signature


class Roster(Wire):
    """Whose keys a round's masks are made of, in ascending order of address as a number (`digests.in_order`).

    Its digest is part of every masked update's metrics, which hospitals sign and the ledger records; groups and the
    graph of who shares masks with whom follow from it.
    """

    members: Annotated[tuple[SignedKeys, ...], Field(min_length=2, max_length=MOST_MEMBERS)]
    threshold: Number = Field(gt=0.5, le=1)
    group: IntegerOrNone = Field(default=None, ge=3, le=1000)

    def digest(self) -> Digest:
        """SHA-256 of its canonical JSON."""
        return digests.of_json(self.model_dump(mode="json"))

    @property
    def samples(self) -> int:
        """The unit of weights: all images that may weigh."""
        return sum(each.keys.samples for each in self.members)

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Members' addresses in their order; a member's place in it, plus one, is where its shares are of."""
        return tuple(each.keys.hospital for each in self.members)


class Parcel(Wire):
    """A share of each of two secrets, sealed from one hospital to another."""

    sender: Address
    recipient: Address
    sealed: Sealed


class Shares(Wire):
    """All parcels of one hospital, one for each that holds shares of its secrets, itself left out."""

    roster: Digest
    parcels: Annotated[tuple[Parcel, ...], Field(max_length=MOST_MEMBERS)]


class Survivors(Wire):
    """Who is in a round's sum, and who is not though others' masks count on them; each in the roster's order."""

    job: JobId
    round: Integer = Field(ge=1, lt=2**32)
    roster: Digest
    survivors: Annotated[tuple[Address, ...], Field(min_length=1, max_length=MOST_MEMBERS)]
    dropped: Annotated[tuple[Address, ...], Field(max_length=MOST_MEMBERS)]

    def statement(self) -> Statement:
        """What a hospital signs that agrees."""
        return Statement(name=SURVIVORS, digest=digests.of_json(self.model_dump(mode="json")))


class Consent(Wire):
    """A hospital's signature under who is in the sum (`Survivors.statement`)."""

    hospital: Address
    signature: Signature


class Revealed(Wire):
    """What one hospital holds and reveals: of survivors shares of the self-mask's seed, of the dropped ones shares of
    the masking key's seed; never both of one."""

    hospital: Address
    roster: Digest
    seeds: dict[Address, Share] = Field(max_length=MOST_MEMBERS)
    keys: dict[Address, Share] = Field(max_length=MOST_MEMBERS)


class MaskingView(Wire):
    """A round's masking as one hospital is told it: what it needs at the stage, and nothing before.

    `parcels`: those that are for it. `sharers`: who handed out shares, of whom alone masks are made.
    """

    stage: Stage
    roster: Roster | None = None
    sharers: tuple[Address, ...] | None = None
    parcels: tuple[Parcel, ...] = ()
    survivors: Survivors | None = None
    consents: tuple[Consent, ...] = ()


class Unmasking(Wire):
    """How a round's masked updates become sums; kept in the model's file, so that whoever has them adds up again.

    `sharers`: members of whose keys masks were made. `survivors`: whose updates are added up, in the order of
    contributions. `seeds`: survivors' self-mask seeds, which their keys' commitments are of. `keys`: seeds of the
    dropped ones' masking keys, which their public keys follow from. `bound` as in `SecureAggregation`.
    """

    roster: Roster
    sharers: tuple[Address, ...]
    survivors: tuple[Address, ...]
    seeds: dict[Address, Seed]
    keys: dict[Address, Seed]
    bound: Number = Field(gt=0, le=1e6)


class Masked(Wire):
    """Of a masked update, as its hospital signs it: by whose keys, how many values were cut off at the bound, and the
    longest change that it attests, where the job has one."""

    roster: Digest
    clipped: Annotated[int, Field(ge=0, lt=2**53), NO_TEXT]
    norm: NumberOrNone = Field(default=None, gt=0, exclude_if=lambda norm: norm is None)
