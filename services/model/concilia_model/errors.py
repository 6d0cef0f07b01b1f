"""The model service's errors and their stable codes."""

from __future__ import annotations

from concilia_kit.problems import Conflict, NotFound, Problem, Unprocessable


class ArtifactTooLarge(Problem):
    """More bytes than one artifact may have."""

    status = 413
    code = "artifact_too_large"


class DigestMismatch(Unprocessable):
    """The bytes that came do not hash to the digest they were sent under."""

    code = "digest_mismatch"


class ArtifactMalformed(Unprocessable):
    """The bytes are no acceptable safetensors file."""

    code = "artifact_malformed"


class UploadInterrupted(Problem):
    """The sender went away before the last byte."""

    status = 400
    code = "upload_interrupted"


class NoSpace(Problem):
    """The store's disk is full, or would be."""

    status = 507
    code = "no_space"


class RangeNotSatisfiable(Problem):
    """The `Range` header asks for bytes that the artifact does not have (RFC 9110, section 15.5.17)."""

    status = 416
    code = "range_not_satisfiable"


class ArtifactNotFound(NotFound):
    """No such artifact, or none that the caller may know of."""

    code = "artifact_not_found"


class ArtifactCorrupt(Problem):
    """A stored file no longer hashes to its name."""

    status = 500
    code = "artifact_corrupt"


class WeightsDoNotFit(Unprocessable):
    """Tensors that do not belong to the architecture."""

    code = "weights_do_not_fit"


class WeightsUnavailable(Problem):
    """Published weights could not be had."""

    status = 503
    code = "weights_unavailable"


class NotPublished(Conflict):
    """The ledger does not say that this job published this digest."""

    code = "not_published"


class AlreadyRegistered(Conflict):
    """The job's model is registered, and otherwise."""

    code = "already_registered"


class NoModel(NotFound):
    """No such model version is registered."""

    code = "no_model"


class ImageTooLarge(Problem):
    """A picture of too many bytes or pixels."""

    status = 413
    code = "image_too_large"


class ImageUnreadable(Unprocessable):
    """No picture, a broken one, or of a format other than JPEG and PNG."""

    code = "image_unreadable"
