"""What Schemathesis calls a failure and is none here: all of it, each with its reason, printed with every run.

No operation and no check is left out. An exemption is of one check, of the operations that it names, and of answers
that it can tell from a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import schemathesis
from concilia_kit.problems import MEDIA_TYPE
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData

Told = Callable[[Response], bool]


@dataclass(frozen=True)
class Exemption:
    """Failures of one kind, of the operations whose 'service METHOD /path' has this (re.search), with such answers."""

    kind: type[Failure]
    operations: str
    told: Told
    reason: str


def _problem(response: Response) -> dict[str, Any]:
    """The problem that an answer is, an empty one where it is none."""
    if response.headers.get("content-type", [""])[0] != MEDIA_TYPE or not response.content:
        return {}
    document: dict[str, Any] = response.json()
    return document


def _is_about_what_there_is(response: Response) -> bool:
    """An error that has a code of its own: neither the schema's, nor one that says nothing but its status."""
    code = _problem(response).get("code", "")
    return 400 <= response.status_code < 500 and bool(code) and not re.match(r"invalid_request$|http_", code)


BETWEEN_MEMBERS = (
    "Value error, an Ethereum address with a wrong EIP-55 checksum",
    "Value error, topk, and no other encoding, has a share",
    "Value error, fedbuff asks all hospitals and closes a round with its first quorum: no over_selection",
    "Value error, fedbuff cannot use",
    "Value error, mixing goes before a robust strategy",
    "Value error, FLTrust needs a root",
    "Value error, 'parameters' are of strategies that other packages bring",
    "Value error, no secure aggregation ",
    "Value error, balance must be none with privacy: ",
    "Value error, no mixup with privacy: ",
    "Value error, no privacy with qfedavg, ",
    "Value error, no privacy with class_balanced, ",
    "Value error, no own_shares with balance ",
    "Value error, no class_counts: ",
    "Value error, no own_counts: ",
    "Value error, class_counts of a use must be ",
    "Value error, no groups with ",
    "Value error, dp_fedavg needs a radius, ",
    "Value error, radius of dp_fedavg must be ",
    "Value error, noise and delta are dp_fedavg's: ",
    "Value error, no dp_fedavg with privacy: ",
    "Value error, no encoding with dp_fedavg ",
    "Value error, no head_rounds with dp_fedavg, ",
    "Value error, 'file' goes with weights 'file', and only with it",
    "Value error, confusion must sum to images",
    "Value error, positives must agree with the confusion matrix",
    "Value error, positives and negatives must sum to images",
    "Value error, optimizer must be sgd: ",
    "Value error, no calibrate: ",
    "Value error, no flips: ",
    "Value error, two classes have one code",
    "Value error, the critical class is none of the classes: ",
    "Value error, a metric is ",
    "Value error, a threshold is of the classification's critical class, and of no other",
    "Value error, training_images and held_out_images must have a count a class",
    "Value error, confusion, positives and negatives must have the same classes",
    "Value error, calibration must be of all images, and agree with the confusion matrix",
    "Value error, no bin has more correct images, or confidence, than images",
    "Value error, reliability must sum to images at each temperature",
    "Value error, oddity must sum to images",
    "Value error, a temperature changes no class: correct images must be as many at each",
    "Value error, positives and negatives go together",
    "Value error, one half has a critical class or oddities, and the other none",
)
"""How the rules that JSON Schema has no words for begin, as `invalid_request` tells them."""


def _is_between_members(response: Response) -> bool:
    errors = _problem(response).get("errors", [])
    return bool(errors) and all(each["what"].startswith(BETWEEN_MEMBERS) for each in errors)


def _is_json_rpc_error(response: Response) -> bool:
    told = response.json() if response.status_code == 200 else []
    return any("error" in each for each in (told if isinstance(told, list) else [told]))


def _is_head_without_words(response: Response) -> bool:
    return response.request.method == "HEAD" and 400 <= response.status_code < 500 and not response.content


def _is_no_download(response: Response) -> bool:
    return response.status_code == 503 and _problem(response).get("code") == "weights_unavailable"


EXEMPTIONS = (
    Exemption(
        RejectedPositiveData,
        "",
        _is_about_what_there_is,
        "an error with a code of its own says what well-formed values mean here: a signature by somebody else, bytes "
        "of another digest, a round that is closed; `invalid_request`, which schemas speak of, stays a failure",
    ),
    Exemption(
        RejectedPositiveData,
        "",
        _is_between_members,
        "rules between members (sums of counts, a parameter of one encoding) and checksums of addresses, for which "
        "JSON Schema has no words; listed word by word",
    ),
    Exemption(
        RejectedPositiveData,
        "model HEAD ",
        _is_head_without_words,
        "an answer to HEAD has no body to say why (RFC 9110, section 9.3.2); what GET or PATCH say of the same is seen",
    ),
    Exemption(
        AcceptedNegativeData,
        "chain POST /v1/rpc$",
        _is_json_rpc_error,
        "JSON-RPC 2.0 tells its errors within the answer, and wallets read them there under status 200",
    ),
    Exemption(
        ServerError,
        "model POST /v1/initial-models$",
        _is_no_download,
        "ImageNet's weights are on another site, which these tests let nobody reach; 503 is what the description has "
        "for it",
    ),
)

REFUSALS = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "422", "428", "429"]
"""Which answers refuse what is malformed: Schemathesis's own, with 412 (another version of tus) and 413 (an upload that
says it is too large), without 5xx."""
MISSING_HEADER = {"/v1/uploads": ["400", "401", "412", "415"]}
"""What a header that is missing is answered with, by the beginning of the path: 412 is tus 1.0.0's own word for a
version that was not said."""


def exempt(service: str, failure: Failure, case: schemathesis.Case, response: Response) -> Exemption | None:
    """What makes a failure none; None where it is one."""
    name = f"{service} {case.operation.label}"
    for each in EXEMPTIONS:
        if isinstance(failure, each.kind) and re.search(each.operations, name) and each.told(response):
            return each
    return None
