// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IConciliaLedger} from "../src/IConciliaLedger.sol";
import {Consortium} from "./Consortium.sol";
import {VM} from "./Vm.sol";

/// @notice Calls the ledger in any order, says beforehand whether each call must succeed, and keeps its own books.
contract Operator is Consortium {
    uint32 public round;
    bytes32 public head = BASE;
    uint32 public closed;
    bool public published;
    uint32 private nonce;

    function keyAt(uint256 place) external view returns (uint256) {
        return keys[place];
    }

    function ledger() external view returns (IConciliaLedger) {
        return LEDGER;
    }

    function open(bool merkle, uint32 seconds_, uint32 quorum) external {
        quorum = uint32(bound(quorum, 1, 3));
        uint64 deadline = uint64(block.timestamp + bound(seconds_, 1, 2 hours));
        bool expected = !isOpen() && !published;
        (uint32 next, bytes32 base) = (round + 1, head);
        attempt(
            merkle
                ? abi.encodeCall(LEDGER.openMerkleRound, (JOB, next, base, deadline, quorum))
                : abi.encodeCall(LEDGER.openRound, (JOB, next, base, deadline, quorum)),
            expected
        );
        if (expected) ++round;
    }

    function record(uint256 place) external {
        uint256 key = keys[bound(place, 0, HOSPITALS - 1)];
        IConciliaLedger.SignedUpdate[] memory batch = new IConciliaLedger.SignedUpdate[](1);
        batch[0] = onHead(key);
        (bool recorded,) = LEDGER.updateStatus(JOB, round, VM.addr(key));
        bool expected = isOpen() && !recorded && !LEDGER.commitmentOf(JOB, round).merkle && enrolled(key)
            && block.timestamp <= LEDGER.roundOf(JOB, round).deadline;
        attempt(abi.encodeCall(LEDGER.submitUpdates, (JOB, round, head, batch)), expected);
    }

    function commit(uint32 count) external {
        count = uint32(bound(count, 1, HOSPITALS));
        uint256 holders = 0;
        for (uint256 i = 0; i < HOSPITALS; ++i) {
            if (enrolled(keys[i])) ++holders;
        }
        IConciliaLedger.Round memory stored = LEDGER.roundOf(JOB, round);
        bool expected = isOpen() && stored.submitted == 0 && count <= holders
            && block.timestamp <= uint256(stored.deadline) + LEDGER.COMMIT_GRACE();
        bytes32 root = rootOf(leavesOf(count), 0, count);
        attempt(abi.encodeCall(LEDGER.commitUpdates, (JOB, round, head, root, count)), expected);
    }

    function reject(uint256 place) external {
        address hospital = VM.addr(keys[bound(place, 0, HOSPITALS - 1)]);
        (bool recorded, bool rejected) = LEDGER.updateStatus(JOB, round, hospital);
        attempt(
            abi.encodeCall(LEDGER.rejectUpdate, (JOB, round, hospital, IConciliaLedger.Reason.NonFinite)),
            isOpen() && recorded && !rejected
        );
    }

    function rejectLeaf(uint256 place) external {
        place = bound(place, 0, HOSPITALS - 1);
        uint32 count = LEDGER.commitmentOf(JOB, round).count;
        bytes32[] memory proof = place < count ? proofOf(leavesOf(count), 0, count, place) : new bytes32[](0);
        IConciliaLedger.SignedUpdate memory one = onHead(keys[place]);
        bool expected = isOpen() && place < count && !LEDGER.leafRejected(JOB, round, uint32(place));
        attempt(
            abi.encodeCall(
                LEDGER.rejectCommitted, (JOB, round, one, uint32(place), proof, IConciliaLedger.Reason.NonFinite)
            ),
            expected
        );
        // A committed leaf that is right in all but the role is proven or disputed by the role at the commitment.
        if (place < count) {
            bool proven = succeeds(abi.encodeCall(LEDGER.proveUpdate, (JOB, round, one, uint32(place), proof)));
            bool disputed = succeeds(abi.encodeCall(LEDGER.disputeUpdate, (JOB, round, one, uint32(place), proof)));
            assert(proven != disputed);
        }
    }

    function close(uint32 off) external {
        IConciliaLedger.Round memory stored = LEDGER.roundOf(JOB, round);
        off = off % 4 == 0 ? 1 : 0;
        uint32 accepted = stored.submitted - stored.rejected;
        bool expected = isOpen() && off == 0 && accepted >= stored.quorum;
        bytes32 made = keccak256(abi.encode(++nonce));
        attempt(abi.encodeCall(LEDGER.closeRound, (JOB, round, made, BASE, accepted + off)), expected);
        if (expected) (head, closed) = (made, round);
    }

    function abort() external {
        attempt(abi.encodeCall(LEDGER.abortRound, (JOB, round)), isOpen());
    }

    function publish(uint8 willing) external {
        if (willing % 16 != 0) return; // else most sequences would end here
        bool expected = !isOpen() && closed != 0 && !published;
        attempt(abi.encodeCall(LEDGER.publishModel, (JOB, head)), expected);
        if (expected) published = true;
    }

    function change(uint256 place, bool granted) external {
        address hospital = VM.addr(keys[bound(place, 0, HOSPITALS - 1)]);
        bytes32 role = LEDGER.HOSPITAL_ROLE();
        if (granted) LEDGER.grantRole(role, hospital);
        else LEDGER.revokeRole(role, hospital);
    }

    function wait(uint32 seconds_) external {
        VM.warp(block.timestamp + bound(seconds_, 1, 1 hours));
    }

    function isOpen() public view returns (bool) {
        return LEDGER.roundOf(JOB, round).status == IConciliaLedger.RoundStatus.Open;
    }

    function onHead(uint256 key) private view returns (IConciliaLedger.SignedUpdate memory one) {
        one = update(key, JOB, round);
        bytes32 base = LEDGER.roundOf(JOB, round).base;
        one.signature = signed(
            key, digestOf(address(LEDGER), block.chainid, JOB, round, base, one.hospital, one.digest)
        );
    }

    function leavesOf(uint256 count) private view returns (bytes32[] memory leaves) {
        leaves = new bytes32[](count);
        bytes32 base = LEDGER.roundOf(JOB, round).base;
        for (uint256 i = 0; i < count; ++i) {
            IConciliaLedger.SignedUpdate memory one = onHead(keys[i]);
            bytes32 digest =
                digestOf(address(LEDGER), block.chainid, JOB, round, base, one.hospital, one.digest);
            leaves[i] = sha256(abi.encodePacked(bytes1(0), digest, one.signature));
        }
    }

    function enrolled(uint256 key) private view returns (bool) {
        return LEDGER.hasRole(LEDGER.HOSPITAL_ROLE(), VM.addr(key));
    }

    function attempt(bytes memory call_, bool expected) private {
        assert(succeeds(call_) == expected);
    }

    function succeeds(bytes memory call_) private returns (bool success) {
        (success,) = address(LEDGER).call(call_);
    }
}

/// @notice What holds after any sequence of calls.
contract LedgerInvariantsTest {
    bytes32 private constant JOB = keccak256("job");
    uint256 private constant HOSPITALS = 12;
    Operator private operator;
    IConciliaLedger private ledger;

    function setUp() public {
        operator = new Operator();
        ledger = operator.ledger();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(operator);
    }

    function invariant_RoundsAddUp() public view {
        for (uint32 round = 1; round <= operator.round(); ++round) {
            IConciliaLedger.Round memory stored = ledger.roundOf(JOB, round);
            IConciliaLedger.Commitment memory commitment = ledger.commitmentOf(JOB, round);
            uint256 recorded = 0;
            uint256 rejected = 0;
            for (uint256 i = 0; i < HOSPITALS; ++i) {
                (bool isRecorded, bool isRejected) = ledger.updateStatus(JOB, round, VM.addr(operator.keyAt(i)));
                assert(isRecorded || !isRejected);
                if (isRecorded) ++recorded;
                if (isRejected || ledger.leafRejected(JOB, round, uint32(i))) ++rejected;
            }
            assert(rejected == stored.rejected && stored.rejected <= stored.submitted);
            assert(recorded == (commitment.root == 0 ? stored.submitted : 0)); // never both
            assert(commitment.root == 0 || (commitment.merkle && commitment.count == stored.submitted));
            assert(!commitment.merkle || recorded == 0);
            if (stored.status == IConciliaLedger.RoundStatus.Closed) {
                assert(stored.submitted - stored.rejected >= stored.quorum);
            }
            // All but the last are over, and nothing is there after the last.
            assert(stored.status != IConciliaLedger.RoundStatus.None);
            assert(round == operator.round() || stored.status != IConciliaLedger.RoundStatus.Open);
        }
        assert(ledger.roundOf(JOB, operator.round() + 1).status == IConciliaLedger.RoundStatus.None);
    }

    function invariant_TheHeadIsThatOfTheLastClosedRound() public view {
        IConciliaLedger.Job memory job = ledger.jobOf(JOB);
        assert(job.round == operator.round() && job.published == operator.published());
        assert(job.round == 0 || job.head == operator.head());
    }

    function invariant_NumbersStay() public view {
        uint256 seen = 0;
        for (uint256 i = 0; i < HOSPITALS; ++i) {
            seen |= 1 << ledger.hospitalNumber(VM.addr(operator.keyAt(i)));
        }
        assert(seen == (1 << (HOSPITALS + 1)) - 2);
    }
}
