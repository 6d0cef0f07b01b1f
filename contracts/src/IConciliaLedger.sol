// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The ledger of a consortium that trains one model together
/// @notice Records who may take part, which rounds were opened on which base model, which signed updates arrived in
/// time, which of them were rejected and why, and which model came out. Everything else (weights, metrics, names) stays
/// off chain and is bound to the ledger by SHA-256 digests.
/// @dev A *job* is identified by 32 bytes chosen by the coordinator. Rounds of a job are numbered from 1 without gaps.
/// The job's *head* is the digest every next round must start from: the base of round 1, afterwards the global model of
/// the last closed round. An aborted round leaves the head where it was.
interface IConciliaLedger {
    // ------------------------------------------------------------------------------------------------------- types

    /// @notice Where a round stands. `None` is a round that was never opened.
    enum RoundStatus {
        None,
        Open,
        Closed,
        Aborted
    }

    /// @notice Why a confirmed update was left out of the average.
    enum Reason {
        None,
        ArtifactMissing,
        DigestMismatch,
        MalformedFile,
        NameMismatch,
        ShapeMismatch,
        DtypeMismatch,
        NonFinite,
        NormTooLarge,
        SampleCount
    }

    /// @notice A signed update as submitted; job, round and base are given once for a whole batch.
    /// @param hospital The address that signed, and whose hospital role counts.
    /// @param digest SHA-256 of the update file's exact bytes.
    /// @param samples Training samples behind the update.
    /// @param metrics SHA-256 of the update's metrics in canonical JSON (RFC 8785).
    /// @param signature EIP-712 signature of `Update(address hospital,bytes32 job,uint32 round,bytes32 base,bytes32
    /// digest,uint64 samples,bytes32 metrics)`: 65 bytes by an account, or whatever an ERC-1271 wallet accepts.
    struct SignedUpdate {
        address hospital;
        bytes32 digest;
        uint64 samples;
        bytes32 metrics;
        bytes signature;
    }

    /// @notice A round as stored.
    /// @param base Digest the round starts from.
    /// @param deadline Unix seconds; an update in a block with a later timestamp is refused.
    /// @param quorum Least number of accepted updates with which the round may close.
    /// @param submitted Updates recorded.
    /// @param rejected Recorded updates that were rejected afterwards.
    /// @param status Where the round stands.
    struct Round {
        bytes32 base;
        uint64 deadline;
        uint32 quorum;
        uint32 submitted;
        uint32 rejected;
        RoundStatus status;
    }

    /// @notice A job as stored.
    /// @param head Digest the next round must start from.
    /// @param round Number of the last round opened.
    /// @param published Whether the job's model was published, which ends the job.
    struct Job {
        bytes32 head;
        uint32 round;
        bool published;
    }

    /// @notice An administrator's signed decision about a role.
    /// @param role One of the role identifiers below.
    /// @param account Whom it concerns.
    /// @param granted True to grant, false to revoke.
    /// @param nonce The administrator's current nonce, see `nonces`.
    /// @param deadline Unix seconds after which the signature is void.
    struct RoleChange {
        bytes32 role;
        address account;
        bool granted;
        uint256 nonce;
        uint256 deadline;
    }

    // ------------------------------------------------------------------------------------------------------ errors

    /// @notice A digest, job or list that must not be zero or empty is.
    error EmptyValue();
    /// @notice The round number is not the one that follows the job's last round.
    error RoundOutOfOrder(bytes32 job, uint32 round, uint32 expected);
    /// @notice The job's last round is still open.
    error PreviousRoundOpen(bytes32 job, uint32 round);
    /// @notice The round is not open: never opened, closed or aborted.
    error RoundNotOpen(bytes32 job, uint32 round);
    /// @notice A round or update names another base model than the ledger.
    error BaseMismatch(bytes32 expected, bytes32 given);
    /// @notice The deadline of a round, or of a signed role change, has passed (or a new round's lies in the past).
    error DeadlinePassed(uint256 deadline, uint256 timestamp);
    /// @notice The signature does not belong to the address that it claims.
    error InvalidSignature(address claimed);
    /// @notice The signer does not hold the hospital role.
    error NotHospital(address account);
    /// @notice The hospital has already submitted in this round.
    error AlreadySubmitted(bytes32 job, uint32 round, address hospital);
    /// @notice An update that claims no samples.
    error NoSamples(address hospital);
    /// @notice There is no such update to reject.
    error UpdateNotFound(bytes32 job, uint32 round, address hospital);
    /// @notice The update was rejected before.
    error AlreadyRejected(bytes32 job, uint32 round, address hospital);
    /// @notice A rejection must say why.
    error ReasonMissing();
    /// @notice Fewer accepted updates than the round's quorum.
    error QuorumNotReached(uint32 accepted, uint32 quorum);
    /// @notice The coordinator folded another number of updates than the ledger counts as accepted.
    error ContributionCountMismatch(uint32 accepted, uint32 given);
    /// @notice The digest to publish is not the job's head, or the job has no closed round.
    error NotHead(bytes32 expected, bytes32 given);
    /// @notice The job's model is published; the job takes no further round.
    error JobPublished(bytes32 job);
    /// @notice A role change names a role that this ledger does not know.
    error UnknownRole(bytes32 role);

    // ------------------------------------------------------------------------------------------------------ events

    /// @notice A round was opened on a base model.
    event RoundOpened(
        bytes32 indexed job, uint32 indexed round, bytes32 base, uint64 deadline, uint32 quorum
    );
    /// @notice A hospital's signed update was recorded.
    event UpdateRecorded(
        bytes32 indexed job,
        uint32 indexed round,
        address indexed hospital,
        bytes32 digest,
        uint64 samples,
        bytes32 metrics
    );
    /// @notice A recorded update was left out.
    event UpdateRejected(bytes32 indexed job, uint32 indexed round, address indexed hospital, Reason reason);
    /// @notice A round was closed on a new global model.
    /// @param contributions SHA-256 over the accepted updates in ascending order of hospital address, each as
    /// `hospital (20 bytes) || digest (32 bytes) || samples (8 bytes, big-endian)`.
    event RoundClosed(
        bytes32 indexed job, uint32 indexed round, bytes32 globalDigest, bytes32 contributions, uint32 count
    );
    /// @notice A round was given up: its quorum was not reached by its deadline, or the job was stopped.
    event RoundAborted(bytes32 indexed job, uint32 indexed round);
    /// @notice A job's model was published, which ends the job.
    event ModelPublished(bytes32 indexed job, uint32 indexed round, bytes32 indexed digest);
    /// @notice An account was enrolled as a hospital for the first time and given its number, which it keeps.
    event HospitalNumbered(address indexed hospital, uint32 number);

    // ------------------------------------------------------------------------------------------------ coordinator

    /// @notice Opens the next round of a job on its head (any base for round 1).
    function openRound(bytes32 job, uint32 round, bytes32 base, uint64 deadline, uint32 quorum) external;

    /// @notice Leaves a recorded update of an open round out, saying why.
    function rejectUpdate(bytes32 job, uint32 round, address hospital, Reason reason) external;

    /// @notice Closes a round; `count` must equal the updates recorded less those rejected, so that an update that was
    /// confirmed while the coordinator folded cannot be lost.
    function closeRound(bytes32 job, uint32 round, bytes32 globalDigest, bytes32 contributions, uint32 count) external;

    /// @notice Gives an open round up.
    function abortRound(bytes32 job, uint32 round) external;

    /// @notice Publishes the job's head and ends the job.
    function publishModel(bytes32 job, bytes32 digest) external;

    // --------------------------------------------------------------------------------------------------- hospitals

    /// @notice Records a batch of signed updates of one round, all or none. Anyone may relay it.
    function submitUpdates(bytes32 job, uint32 round, bytes32 base, SignedUpdate[] calldata updates) external;

    // -------------------------------------------------------------------------------------------------- membership

    /// @notice Carries an administrator's signed role change out. Anyone may relay it.
    /// @param signature By `admin`, EIP-712 of `RoleChange(bytes32 role,address account,bool granted,uint256
    /// nonce,uint256 deadline)`.
    function changeRole(RoleChange calldata change, address admin, bytes calldata signature) external;

    /// @notice Stops every state change but role changes and `unpause`.
    function pause() external;

    /// @notice Ends a pause.
    function unpause() external;

    // ------------------------------------------------------------------------------------------------------- views

    /// @notice The stored round; `status` is `None` where it was never opened.
    function roundOf(bytes32 job, uint32 round) external view returns (Round memory);

    /// @notice The stored job; `round` is 0 where it does not exist.
    function jobOf(bytes32 job) external view returns (Job memory);

    /// @notice Whether a hospital's update was recorded, and whether it was rejected.
    function updateStatus(bytes32 job, uint32 round, address hospital)
        external
        view
        returns (bool recorded, bool rejected);

    /// @notice A hospital's number, from 1 in order of first enrolment; 0 for an account that never was one.
    function hospitalNumber(address hospital) external view returns (uint32);
}
