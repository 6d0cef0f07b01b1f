"""The model service's errors and their stable codes."""

from __future__ import annotations

from concilia_kit.problems import Conflict, NotFound, Problem, Unavailable, Unprocessable
from concilia_kit.sealing import SealingKeyUnknown as SealingKeyUnknown


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


class UploadStalled(Problem):
    """Nothing came from the sender for too long."""

    status = 408
    code = "upload_stalled"


class UploadMalformed(Problem):
    """A header of a resumable upload is missing or says nothing that can be."""

    status = 400
    code = "upload_malformed"


class UploadTypeUnsupported(Problem):
    """The bytes of a resumable upload come as `application/offset+octet-stream`."""

    status = 415
    code = "upload_type_unsupported"


class TusVersionUnsupported(Problem):
    """Another version of the tus protocol than the one spoken here."""

    status = 412
    code = "tus_version_unsupported"


class UploadNotFound(NotFound):
    """No such upload, none of the caller's, or one that ended."""

    code = "upload_not_found"


class OffsetMismatch(Conflict):
    """The bytes sent do not begin where the upload stands."""

    code = "offset_mismatch"


class UploadTakenOver(Conflict):
    """A newer request of the owner goes on with this upload."""

    code = "upload_taken_over"


class UploadLocked(Problem):
    """Another process writes to this upload."""

    status = 423
    code = "upload_locked"


class UploadTooLong(Problem):
    """More bytes than the upload was announced with."""

    status = 413
    code = "upload_too_long"


class TooManyUploads(Problem):
    """The caller has as many unfinished uploads as one may have."""

    status = 429
    code = "too_many_uploads"


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


class ArtifactRemoved(Problem):
    """The artifact's file was deleted by policy; its record stays. `removed_at` says when."""

    status = 410
    code = "artifact_removed"


class ArtifactQuarantined(NotFound):
    """The artifact's file had other bytes than it is named after and was put aside. Whoever has the bytes may bring
    them again. `removed_at` says when."""

    code = "artifact_quarantined"


class ArtifactCorrupt(Problem):
    """A stored file no longer hashes to its name."""

    status = 500
    code = "artifact_corrupt"


class WeightsDoNotFit(Unprocessable):
    """Tensors that do not belong to the architecture."""

    code = "weights_do_not_fit"


class ArchitectureUnavailable(Unprocessable):
    """A network of timm that is not to be had here: its extra is not installed, or it has none of that name."""

    code = "architecture_unavailable"


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


class ClassCountsUnfit(Conflict):
    """The model does not answer by class shares, or tells other classes apart than are counted."""

    code = "class_counts_unfit"


class NetworksUnavailable(Unavailable):
    """The process that holds the networks cannot be had."""

    code = "networks_unavailable"


def of_code(problem: Problem) -> Problem:
    """The problem in the class here that has its code, if there is one: what came from another process of this service
    is told and counted as if it had been raised in this one."""
    for kind in globals().values():
        if isinstance(kind, type) and issubclass(kind, Problem) and kind.code == problem.problem_code:
            return kind(problem.detail, status=problem.problem_status, extra=problem.extra)
    return problem
