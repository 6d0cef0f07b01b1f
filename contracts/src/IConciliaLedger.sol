// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The ledger of a consortium that trains one model together
/// @notice Records who may take part, which rounds were opened on which base model, which signed updates arrived in
/// time, which of them were rejected and why, and which model came out. Everything else (weights, metrics, names) stays
/// off chain and is bound to the ledger by SHA-256 digests.
/// @dev A *job* is identified by 32 bytes chosen by the coordinator. Rounds of a job are numbered from 1 without gaps.
/// The job's *head* is the digest every next round must start from: the base of round 1, afterwards the global model of
/// the last closed round. An aborted round leaves the head where it was.
///
/// A round collects its updates in one of two modes, never both. *Recorded*: `submitUpdates` checks every signature and
/// emits every update. *Merkle*: the updates are collected off chain until the deadline, and `commitUpdates` writes
/// their root and their count. Hospitals sign the same in both.
///
/// The tree is that of RFC 9162, 2.1 (and RFC 6962) with SHA-256: a leaf is `SHA-256(0x00 || data)`, a node
/// `SHA-256(0x01 || left || right)`, the shape that of the RFC for any count. A leaf's data is `digest || signature`: the
/// 32 bytes of the update's EIP-712 digest, then the bytes of the signature. Leaves stand in ascending order of hospital
/// address, each hospital once. Domains are separated twice: leaves from nodes by the RFC's prefixes, and updates of
/// another job, round, base, contract or chain by the EIP-712 digest. The root alone does not say how many leaves are
/// under it (no tree head of the RFC does); the count beside it does.
///
/// In Merkle mode the contract has checked neither signatures nor roles when a round closes; it binds the coordinator to
/// a list that everyone can check afterwards, off chain from the leaves and one by one on chain:
/// - `proveUpdate` (anyone) leaves the trace that a hospital's valid update is in the commitment: a hospital proves that
///   it was counted in, or, with the proofs of two neighbours in the order, that it was left out. Two proven updates of
///   one hospital, or two in descending order, prove that the commitment breaks its rules.
/// - `disputeUpdate` (anyone) leaves the trace that a committed update is false: of no hospital, empty, or not signed.
/// - A leaf of which nobody can show the update (another round's, say, or noise) can be neither proven nor disputed, and
///   not rejected: a verifier that is not given the update behind every leaf must refuse the round.
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

    /// @notice What is false about a committed update.
    enum Finding {
        None,
        EmptyUpdate,
        NotHospital,
        InvalidSignature
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
    /// @param submitted Updates recorded, or committed.
    /// @param rejected Those that were rejected afterwards.
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

    /// @notice How a round collects its updates.
    /// @param root Root of the committed updates; zero before the commitment, and always in a recorded round.
    /// @param count Updates under the root.
    /// @param merkle Whether the round takes a commitment only; false in an open round that may still take either.
    struct Commitment {
        bytes32 root;
        uint32 count;
        bool merkle;
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
    /// @notice The round takes its updates as a commitment, not one by one.
    error RoundTakesCommitment(bytes32 job, uint32 round);
    /// @notice The round has recorded updates already, and can take no commitment any more.
    error UpdatesRecorded(bytes32 job, uint32 round, uint32 submitted);
    /// @notice The round's updates were committed before.
    error AlreadyCommitted(bytes32 job, uint32 round);
    /// @notice The round's updates were not committed.
    error NotCommitted(bytes32 job, uint32 round);
    /// @notice A commitment counts more updates than there are hospitals now.
    error MoreUpdatesThanHospitals(uint32 hospitals, uint32 given);
    /// @notice There are not that many leaves in the commitment.
    error IndexOutOfRange(uint32 index, uint32 count);
    /// @notice The proof does not lead from this leaf at this index to the committed root.
    error NotInCommitment(bytes32 leaf, uint32 index);
    /// @notice The committed update is right, or only its wallet could tell.
    error NothingToDispute(address hospital);

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
    /// @notice A recorded or committed update was left out.
    event UpdateRejected(bytes32 indexed job, uint32 indexed round, address indexed hospital, Reason reason);
    /// @notice A round was opened that takes its updates as a commitment only; follows its `RoundOpened`.
    event MerkleRoundOpened(bytes32 indexed job, uint32 indexed round);
    /// @notice The updates of a round were committed.
    event UpdatesCommitted(bytes32 indexed job, uint32 indexed round, bytes32 root, uint32 count);
    /// @notice The leaf of a committed update that was left out; follows its `UpdateRejected`.
    event LeafRejected(bytes32 indexed job, uint32 indexed round, uint32 index);
    /// @notice A committed update was shown to be in the commitment, signed, and of a hospital at that time.
    event UpdateProven(
        bytes32 indexed job,
        uint32 indexed round,
        address indexed hospital,
        uint32 index,
        bytes32 digest,
        uint64 samples,
        bytes32 metrics
    );
    /// @notice A committed update was shown to be in the commitment, and false.
    event UpdateDisputed(
        bytes32 indexed job, uint32 indexed round, address indexed hospital, uint32 index, Finding finding
    );
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

    /// @notice Opens the next round as `openRound` does, for a commitment only. In a round of `openRound` a hospital that
    /// relays its own update shortly before the deadline would leave the coordinator unable to commit the others' and too
    /// late to record them; here `submitUpdates` is refused from the start.
    function openMerkleRound(bytes32 job, uint32 round, bytes32 base, uint64 deadline, uint32 quorum) external;

    /// @notice Commits the updates of an open round that has none recorded, once, and until `COMMIT_GRACE` (an hour)
    /// after its deadline: updates arrive until the deadline, and the commitment may have to wait for a chain that is
    /// down, but not for long, since only the coordinator's word says that an update arrived in time.
    /// @dev The contract cannot see the leaves. It checks that no more are claimed than hospitals hold the role in this
    /// very transaction, which is also the moment at which `proveUpdate` and `disputeUpdate` ask for the role.
    /// @param root Root over the leaves, see above.
    /// @param count Number of leaves.
    function commitUpdates(bytes32 job, uint32 round, bytes32 base, bytes32 root, uint32 count) external;

    /// @notice Leaves a recorded update of an open round out, saying why. A committed one is left out by
    /// `rejectCommitted`.
    function rejectUpdate(bytes32 job, uint32 round, address hospital, Reason reason) external;

    /// @notice Leaves a committed update of an open round out, saying why.
    /// @dev The leaf's preimage and its proof bind the hospital that is named to the index that is counted, so that no
    /// hospital is named for another's leaf and no leaf is counted out twice. Neither signature nor role is checked: a
    /// leaf that is false must be rejectable too.
    function rejectCommitted(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof,
        Reason reason
    ) external;

    /// @notice Closes a round; `count` must equal the updates recorded or committed less those rejected, so that an
    /// update that was confirmed while the coordinator folded cannot be lost.
    function closeRound(bytes32 job, uint32 round, bytes32 globalDigest, bytes32 contributions, uint32 count) external;

    /// @notice Gives an open round up.
    function abortRound(bytes32 job, uint32 round) external;

    /// @notice Publishes the job's head and ends the job.
    function publishModel(bytes32 job, bytes32 digest) external;

    // --------------------------------------------------------------------------------------------------- hospitals

    /// @notice Records a batch of signed updates of one round, all or none. Anyone may relay it.
    function submitUpdates(bytes32 job, uint32 round, bytes32 base, SignedUpdate[] calldata updates) external;

    // ---------------------------------------------------------------------------------------------------- disputes

    /// @notice Records that a committed update is in the commitment, signed, and of an account that held the hospital
    /// role at the commitment. Anyone may, at any time from the commitment on, also while paused.
    /// @dev Checks in this order: `NotCommitted`, `IndexOutOfRange`, `NotInCommitment`, `EmptyValue`, `NoSamples`,
    /// `InvalidSignature`, `NotHospital`. An ERC-1271 wallet is asked now, and may answer otherwise than it did then.
    /// @param proof Inclusion proof of RFC 9162, 2.1.3, from the leaf's sibling upwards.
    function proveUpdate(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof
    ) external;

    /// @notice Records that a committed update is false, with the first finding of: it is empty, its account did not hold
    /// the hospital role at the commitment, its account, which has no code, did not sign it. Refuses with
    /// `NothingToDispute` otherwise. Anyone may, at any time from the commitment on, also while paused.
    /// @dev Changes nothing else: in an open round it is the coordinator's to reject the update or to abort. Whether an
    /// ERC-1271 wallet signed is not disputed here, since its refusal can be brought about by too little gas; it is for a
    /// verifier to ask the wallet at the commitment's block.
    function disputeUpdate(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof
    ) external;

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

    /// @notice How the round collects its updates; all zero where it was never opened.
    function commitmentOf(bytes32 job, uint32 round) external view returns (Commitment memory);

    /// @notice Whether the committed update at that index was rejected.
    function leafRejected(bytes32 job, uint32 round, uint32 index) external view returns (bool);

    /// @notice Whether a hospital's update was recorded, and whether it was rejected. Says nothing of committed updates,
    /// which the contract knows by index only.
    function updateStatus(bytes32 job, uint32 round, address hospital)
        external
        view
        returns (bool recorded, bool rejected);

    /// @notice A hospital's number, from 1 in order of first enrolment; 0 for an account that never was one.
    function hospitalNumber(address hospital) external view returns (uint32);
}
