// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

import {IConciliaLedger} from "./IConciliaLedger.sol";
import {InclusionProof} from "./InclusionProof.sol";

/// @title ConciliaLedger
/// @notice The one contract of a consortium: membership, rounds, signed updates, published models.
contract ConciliaLedger is IConciliaLedger, AccessControl, Pausable, EIP712, Nonces {
    /// @notice May change roles (by signature or directly), pause and unpause.
    bytes32 public constant ADMIN_ROLE = 0x00;
    /// @notice May open, close and abort rounds, reject updates and publish models.
    bytes32 public constant COORDINATOR_ROLE = keccak256("COORDINATOR");
    /// @notice May have its signed updates recorded.
    bytes32 public constant HOSPITAL_ROLE = keccak256("HOSPITAL");
    /// @notice Read by the services off chain; gives no right in this contract.
    bytes32 public constant CLINICIAN_ROLE = keccak256("CLINICIAN");
    /// @notice Read by the services off chain; gives no right in this contract.
    bytes32 public constant AUDITOR_ROLE = keccak256("AUDITOR");

    /// @notice Seconds after a round's deadline in which its updates may still be committed.
    uint64 public constant COMMIT_GRACE = 1 hours;

    bytes32 private constant UPDATE_TYPEHASH = keccak256(
        "Update(address hospital,bytes32 job,uint32 round,bytes32 base,bytes32 digest,uint64 samples,bytes32 metrics)"
    );
    bytes32 private constant ROLE_CHANGE_TYPEHASH =
        keccak256("RoleChange(bytes32 role,address account,bool granted,uint256 nonce,uint256 deadline)");

    /// @dev `Job` and the number of the last closed round, which made the head (0: the head is round 1's base).
    struct JobRecord {
        bytes32 head;
        uint32 round;
        uint32 closedRound;
        bool published;
    }

    /// @dev `Round`, and for Merkle mode: whether single updates are refused, and the membership's age when the updates
    /// were committed. All but the base share a storage slot.
    struct RoundRecord {
        bytes32 base;
        uint64 deadline;
        uint32 quorum;
        uint32 submitted;
        uint32 rejected;
        RoundStatus status;
        bool merkle;
        uint32 membershipAge;
    }

    /// @dev `enrolled` mirrors the hospital role, so that an update costs one storage read and not two (2,100 gas each).
    struct Hospital {
        uint32 number;
        bool enrolled;
    }

    /// @dev The hospitals as a whole. `age` counts the grants and losses of the hospital role: a clock that, unlike the
    /// block's, tells apart what happened within one block.
    struct Membership {
        uint32 lastNumber;
        uint32 enrolled;
        uint32 age;
    }

    mapping(bytes32 job => JobRecord) private _jobs;
    mapping(bytes32 job => mapping(uint32 round => RoundRecord)) private _rounds;

    // One bit a hospital, at its number: 256 hospitals share a storage slot, so a batch writes a slot or two.
    mapping(bytes32 job => mapping(uint32 round => mapping(uint256 word => uint256))) private _recorded;
    mapping(bytes32 job => mapping(uint32 round => mapping(uint256 word => uint256))) private _rejected;

    // Merkle mode: the root, and one bit a rejected leaf, at its index.
    mapping(bytes32 job => mapping(uint32 round => bytes32)) private _roots;
    mapping(bytes32 job => mapping(uint32 round => mapping(uint256 word => uint256))) private _rejectedLeaves;

    mapping(address account => Hospital) private _hospitals;
    // The ages at which an account was granted the hospital role, lost it, was granted it again, and so on.
    mapping(address account => uint32[]) private _changes;
    Membership private _membership;

    /// @param admin First holder of the admin role.
    /// @param coordinator First holder of the coordinator role.
    constructor(address admin, address coordinator) EIP712("Concilia", "1") {
        _grantRole(ADMIN_ROLE, admin);
        _grantRole(COORDINATOR_ROLE, coordinator);
    }

    // ------------------------------------------------------------------------------------------------ coordinator

    /// @inheritdoc IConciliaLedger
    function openRound(bytes32 job, uint32 round, bytes32 base, uint64 deadline, uint32 quorum)
        external
        whenNotPaused
        onlyRole(COORDINATOR_ROLE)
    {
        _openRound(job, round, base, deadline, quorum, false);
    }

    /// @inheritdoc IConciliaLedger
    function openMerkleRound(bytes32 job, uint32 round, bytes32 base, uint64 deadline, uint32 quorum)
        external
        whenNotPaused
        onlyRole(COORDINATOR_ROLE)
    {
        _openRound(job, round, base, deadline, quorum, true);
        emit MerkleRoundOpened(job, round);
    }

    /// @inheritdoc IConciliaLedger
    function commitUpdates(bytes32 job, uint32 round, bytes32 base, bytes32 root, uint32 count)
        external
        whenNotPaused
        onlyRole(COORDINATOR_ROLE)
    {
        if (root == 0 || count == 0) revert EmptyValue();
        RoundRecord storage stored = _requireOpen(job, round);
        if (base != stored.base) revert BaseMismatch(stored.base, base);
        if (_roots[job][round] != 0) revert AlreadyCommitted(job, round);
        if (stored.submitted != 0) revert UpdatesRecorded(job, round, stored.submitted);
        uint256 latest = uint256(stored.deadline) + COMMIT_GRACE;
        if (block.timestamp > latest) revert DeadlinePassed(latest, block.timestamp);
        Membership memory membership = _membership;
        if (count > membership.enrolled) revert MoreUpdatesThanHospitals(membership.enrolled, count);

        _roots[job][round] = root;
        stored.merkle = true;
        stored.submitted = count;
        stored.membershipAge = membership.age;
        emit UpdatesCommitted(job, round, root, count);
    }

    /// @inheritdoc IConciliaLedger
    function rejectUpdate(bytes32 job, uint32 round, address hospital, Reason reason)
        external
        whenNotPaused
        onlyRole(COORDINATOR_ROLE)
    {
        RoundRecord storage stored = _requireOpen(job, round);
        if (reason == Reason.None) revert ReasonMissing();
        (bool recorded, bool rejected) = updateStatus(job, round, hospital);
        if (!recorded) revert UpdateNotFound(job, round, hospital);
        if (rejected) revert AlreadyRejected(job, round, hospital);

        (uint256 word, uint256 bit) = _position(_hospitals[hospital].number);
        _rejected[job][round][word] |= bit;
        ++stored.rejected;
        emit UpdateRejected(job, round, hospital, reason);
    }

    /// @inheritdoc IConciliaLedger
    function rejectCommitted(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof,
        Reason reason
    ) external whenNotPaused onlyRole(COORDINATOR_ROLE) {
        RoundRecord storage stored = _requireOpen(job, round);
        if (reason == Reason.None) revert ReasonMissing();
        _requireIncluded(job, round, update, index, proof);
        mapping(uint256 word => uint256) storage bitmap = _rejectedLeaves[job][round];
        (uint256 word, uint256 bit) = _position(index);
        uint256 bits = bitmap[word];
        if (bits & bit != 0) revert AlreadyRejected(job, round, update.hospital);

        bitmap[word] = bits | bit;
        ++stored.rejected;
        emit UpdateRejected(job, round, update.hospital, reason);
        emit LeafRejected(job, round, index);
    }

    /// @inheritdoc IConciliaLedger
    function closeRound(bytes32 job, uint32 round, bytes32 globalDigest, bytes32 contributions, uint32 count)
        external
        whenNotPaused
        onlyRole(COORDINATOR_ROLE)
    {
        RoundRecord storage stored = _requireOpen(job, round);
        uint32 accepted = stored.submitted - stored.rejected;
        if (count != accepted) revert ContributionCountMismatch(accepted, count);
        if (accepted < stored.quorum) revert QuorumNotReached(accepted, stored.quorum);
        if (globalDigest == 0 || contributions == 0) revert EmptyValue();

        stored.status = RoundStatus.Closed;
        JobRecord storage record = _jobs[job];
        record.head = globalDigest;
        record.closedRound = round;
        emit RoundClosed(job, round, globalDigest, contributions, count);
    }

    /// @inheritdoc IConciliaLedger
    function abortRound(bytes32 job, uint32 round) external whenNotPaused onlyRole(COORDINATOR_ROLE) {
        _requireOpen(job, round).status = RoundStatus.Aborted;
        emit RoundAborted(job, round);
    }

    /// @inheritdoc IConciliaLedger
    function publishModel(bytes32 job, bytes32 digest) external whenNotPaused onlyRole(COORDINATOR_ROLE) {
        JobRecord storage record = _jobs[job];
        _requireIdle(job, record);
        uint32 closedRound = record.closedRound;
        if (closedRound == 0 || digest != record.head) revert NotHead(record.head, digest);

        record.published = true;
        emit ModelPublished(job, closedRound, digest);
    }

    // --------------------------------------------------------------------------------------------------- hospitals

    /// @inheritdoc IConciliaLedger
    function submitUpdates(bytes32 job, uint32 round, bytes32 base, SignedUpdate[] calldata updates)
        external
        whenNotPaused
    {
        if (updates.length == 0) revert EmptyValue();
        RoundRecord storage stored = _requireOpen(job, round);
        if (stored.merkle) revert RoundTakesCommitment(job, round);
        if (base != stored.base) revert BaseMismatch(stored.base, base);
        if (block.timestamp > stored.deadline) revert DeadlinePassed(stored.deadline, block.timestamp);

        mapping(uint256 word => uint256) storage bitmap = _recorded[job][round];
        bytes32 domainSeparator = _domainSeparatorV4();
        // The word at hand lives on the stack, and is stored when an update falls into another and at the end. A
        // wallet asked for its signature meanwhile sees the old word but, being called statically, cannot use it.
        (uint256 word,) = _position(_hospitals[updates[0].hospital].number);
        uint256 bits = bitmap[word];

        for (uint256 i = 0; i < updates.length; ++i) {
            SignedUpdate calldata update = updates[i];
            address hospital = update.hospital;
            if (update.digest == 0) revert EmptyValue();
            if (update.samples == 0) revert NoSamples(hospital);
            _requireSignature(
                hospital,
                MessageHashUtils.toTypedDataHash(domainSeparator, _updateHash(job, round, base, update)),
                update.signature
            );
            Hospital memory known = _hospitals[hospital];
            if (!known.enrolled) revert NotHospital(hospital);

            (uint256 itsWord, uint256 bit) = _position(known.number);
            if (itsWord != word) {
                bitmap[word] = bits;
                word = itsWord;
                bits = bitmap[word];
            }
            if (bits & bit != 0) revert AlreadySubmitted(job, round, hospital);
            bits |= bit;
            emit UpdateRecorded(job, round, hospital, update.digest, update.samples, update.metrics);
        }

        bitmap[word] = bits;
        // No truncation: every update of a batch is of another hospital, and those are numbered in 32 bits.
        stored.submitted += uint32(updates.length);
    }

    // ---------------------------------------------------------------------------------------------------- disputes

    /// @inheritdoc IConciliaLedger
    function proveUpdate(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof
    ) external {
        (bytes32 hash, uint32 age) = _requireIncluded(job, round, update, index, proof);
        if (update.digest == 0) revert EmptyValue();
        if (update.samples == 0) revert NoSamples(update.hospital);
        _requireSignature(update.hospital, hash, update.signature);
        if (!_wasHospital(update.hospital, age)) revert NotHospital(update.hospital);

        emit UpdateProven(job, round, update.hospital, index, update.digest, update.samples, update.metrics);
    }

    /// @inheritdoc IConciliaLedger
    function disputeUpdate(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof
    ) external {
        (bytes32 hash, uint32 age) = _requireIncluded(job, round, update, index, proof);
        address hospital = update.hospital;
        Finding finding;
        if (update.digest == 0 || update.samples == 0) {
            finding = Finding.EmptyUpdate;
        } else if (!_wasHospital(hospital, age)) {
            finding = Finding.NotHospital;
        } else if (hospital.code.length == 0 && !_signedByAccount(hospital, hash, update.signature)) {
            // Never by asking a wallet: whoever sends the transaction could starve the wallet's answer of gas.
            finding = Finding.InvalidSignature;
        } else {
            revert NothingToDispute(hospital);
        }
        emit UpdateDisputed(job, round, hospital, index, finding);
    }

    // -------------------------------------------------------------------------------------------------- membership

    /// @inheritdoc IConciliaLedger
    function changeRole(RoleChange calldata change, address admin, bytes calldata signature) external {
        if (block.timestamp > change.deadline) revert DeadlinePassed(change.deadline, block.timestamp);
        if (
            change.role != ADMIN_ROLE && change.role != COORDINATOR_ROLE && change.role != HOSPITAL_ROLE
                && change.role != CLINICIAN_ROLE && change.role != AUDITOR_ROLE
        ) revert UnknownRole(change.role);

        bytes32 structHash = keccak256(
            abi.encode(
                ROLE_CHANGE_TYPEHASH, change.role, change.account, change.granted, change.nonce, change.deadline
            )
        );
        _requireSignature(admin, _hashTypedDataV4(structHash), signature);
        _checkRole(ADMIN_ROLE, admin);
        _useCheckedNonce(admin, change.nonce);

        if (change.granted) _grantRole(change.role, change.account);
        else _revokeRole(change.role, change.account);
    }

    /// @inheritdoc IConciliaLedger
    function pause() external onlyRole(ADMIN_ROLE) {
        _pause();
    }

    /// @inheritdoc IConciliaLedger
    function unpause() external onlyRole(ADMIN_ROLE) {
        _unpause();
    }

    // ------------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IConciliaLedger
    function roundOf(bytes32 job, uint32 round) external view returns (Round memory) {
        RoundRecord storage stored = _rounds[job][round];
        return Round({
            base: stored.base,
            deadline: stored.deadline,
            quorum: stored.quorum,
            submitted: stored.submitted,
            rejected: stored.rejected,
            status: stored.status
        });
    }

    /// @inheritdoc IConciliaLedger
    function commitmentOf(bytes32 job, uint32 round) external view returns (Commitment memory) {
        RoundRecord storage stored = _rounds[job][round];
        bytes32 root = _roots[job][round];
        return Commitment({root: root, count: root == 0 ? 0 : stored.submitted, merkle: stored.merkle});
    }

    /// @inheritdoc IConciliaLedger
    function leafRejected(bytes32 job, uint32 round, uint32 index) external view returns (bool) {
        (uint256 word, uint256 bit) = _position(index);
        return _rejectedLeaves[job][round][word] & bit != 0;
    }

    /// @inheritdoc IConciliaLedger
    function jobOf(bytes32 job) external view returns (Job memory) {
        JobRecord storage record = _jobs[job];
        return Job({head: record.head, round: record.round, published: record.published});
    }

    /// @inheritdoc IConciliaLedger
    function hospitalNumber(address hospital) external view returns (uint32) {
        return _hospitals[hospital].number;
    }

    /// @inheritdoc IConciliaLedger
    function updateStatus(bytes32 job, uint32 round, address hospital)
        public
        view
        returns (bool recorded, bool rejected)
    {
        // Number 0 needs no check: its bit is never set, for submitUpdates asks for the hospital role.
        (uint256 word, uint256 bit) = _position(_hospitals[hospital].number);
        recorded = _recorded[job][round][word] & bit != 0;
        rejected = _rejected[job][round][word] & bit != 0;
    }

    // ---------------------------------------------------------------------------------------------------- internal

    /// @dev Every grant comes through here: by `changeRole`, by `grantRole`, by the constructor.
    function _grantRole(bytes32 role, address account) internal override returns (bool granted) {
        if (account == address(0)) revert EmptyValue();
        granted = super._grantRole(role, account);
        if (role != HOSPITAL_ROLE || !granted) return granted;

        Membership storage membership = _membership;
        _changes[account].push(++membership.age);
        ++membership.enrolled;
        Hospital storage hospital = _hospitals[account];
        hospital.enrolled = true;
        if (hospital.number == 0) {
            uint32 number = ++membership.lastNumber;
            hospital.number = number;
            emit HospitalNumbered(account, number);
        }
    }

    /// @dev Every loss of a role comes through here: by `changeRole`, by `revokeRole`, by `renounceRole`.
    function _revokeRole(bytes32 role, address account) internal override returns (bool revoked) {
        revoked = super._revokeRole(role, account);
        if (role != HOSPITAL_ROLE || !revoked) return revoked;

        Membership storage membership = _membership;
        _changes[account].push(++membership.age);
        --membership.enrolled;
        _hospitals[account].enrolled = false;
    }

    /// @dev Opens a round, of either mode.
    function _openRound(bytes32 job, uint32 round, bytes32 base, uint64 deadline, uint32 quorum, bool merkle) private {
        if (job == 0 || base == 0 || quorum == 0) revert EmptyValue();

        JobRecord storage record = _jobs[job];
        uint32 last = record.round;
        _requireIdle(job, record);
        if (round != last + 1) revert RoundOutOfOrder(job, round, last + 1);
        if (round == 1) record.head = base;
        else if (base != record.head) revert BaseMismatch(record.head, base);
        if (deadline <= block.timestamp) revert DeadlinePassed(deadline, block.timestamp);

        record.round = round;
        _rounds[job][round] = RoundRecord({
            base: base,
            deadline: deadline,
            quorum: quorum,
            submitted: 0,
            rejected: 0,
            status: RoundStatus.Open,
            merkle: merkle,
            membershipAge: 0
        });
        emit RoundOpened(job, round, base, deadline, quorum);
    }

    /// @dev The round, which must be open.
    function _requireOpen(bytes32 job, uint32 round) private view returns (RoundRecord storage stored) {
        stored = _rounds[job][round];
        if (stored.status != RoundStatus.Open) revert RoundNotOpen(job, round);
    }

    /// @dev The job must be neither published nor have an open round.
    function _requireIdle(bytes32 job, JobRecord storage record) private view {
        if (record.published) revert JobPublished(job);
        uint32 last = record.round;
        if (_rounds[job][last].status == RoundStatus.Open) revert PreviousRoundOpen(job, last);
    }

    /// @dev The update must stand at `index` of the round's commitment.
    /// @return hash The update's EIP-712 digest.
    /// @return age The membership's age when the updates were committed.
    function _requireIncluded(
        bytes32 job,
        uint32 round,
        SignedUpdate calldata update,
        uint32 index,
        bytes32[] calldata proof
    ) private view returns (bytes32 hash, uint32 age) {
        bytes32 root = _roots[job][round];
        if (root == 0) revert NotCommitted(job, round);
        RoundRecord storage stored = _rounds[job][round];
        uint32 count = stored.submitted;
        if (index >= count) revert IndexOutOfRange(index, count);

        hash = _hashTypedDataV4(_updateHash(job, round, stored.base, update));
        bytes32 leaf = InclusionProof.leafOf(hash, update.signature);
        if (!InclusionProof.verify(leaf, index, count, proof, root)) revert NotInCommitment(leaf, index);
        age = stored.membershipAge;
    }

    /// @dev Whether an account held the hospital role when the membership was of that age.
    function _wasHospital(address account, uint32 age) private view returns (bool) {
        uint32[] storage changes = _changes[account];
        uint256 earlier = changes.length;
        while (earlier > 0 && changes[earlier - 1] > age) --earlier;
        return earlier & 1 == 1; // granted, lost, granted, ...
    }

    /// @dev `signer` signed `hash` as an account: 65 bytes, v 27 or 28, s in the lower half.
    function _signedByAccount(address signer, bytes32 hash, bytes calldata signature) private pure returns (bool) {
        if (signature.length != 65) return false;
        (address recovered, ECDSA.RecoverError failure,) =
            ECDSA.tryRecover(hash, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
        return failure == ECDSA.RecoverError.NoError && recovered == signer;
    }

    /// @dev `signer` signed `hash`, as an account or, where recovery does not give it, as an ERC-1271 wallet.
    function _requireSignature(address signer, bytes32 hash, bytes calldata signature) private view {
        if (_signedByAccount(signer, hash, signature)) return;

        // As OpenZeppelin's SignatureChecker, whose file cannot be imported: in 5.4 it needs Cancun's mcopy.
        (bool success, bytes memory answer) =
            signer.staticcall(abi.encodeCall(IERC1271.isValidSignature, (hash, signature)));
        if (
            !success || answer.length < 32
                || abi.decode(answer, (bytes32)) != bytes32(IERC1271.isValidSignature.selector)
        ) revert InvalidSignature(signer);
    }

    function _updateHash(bytes32 job, uint32 round, bytes32 base, SignedUpdate calldata update)
        private
        pure
        returns (bytes32)
    {
        return keccak256(
            abi.encode(
                UPDATE_TYPEHASH, update.hospital, job, round, base, update.digest, update.samples, update.metrics
            )
        );
    }

    /// @dev Where the bit of a hospital, by its number, or of a leaf, by its index, is.
    function _position(uint256 number) private pure returns (uint256 word, uint256 bit) {
        word = number >> 8;
        bit = 1 << (number & 0xff);
    }
}
