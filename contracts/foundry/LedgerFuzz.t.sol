// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IConciliaLedger} from "../src/IConciliaLedger.sol";
import {InclusionProof} from "../src/InclusionProof.sol";
import {Consortium} from "./Consortium.sol";
import {VM} from "./Vm.sol";

/// @notice Whatever is not what a hospital signed for this round is refused, in both modes.
contract LedgerFuzzTest is Consortium {
    function setUp() public {
        LEDGER.openRound(JOB, 1, BASE, uint64(block.timestamp + 1 hours), 1);
    }

    function testFuzz_SignatureBytes(bytes calldata signature) public {
        IConciliaLedger.SignedUpdate memory one = update(1, JOB, 1);
        VM.assume(keccak256(signature) != keccak256(one.signature));
        one.signature = signature;
        refuse(one, 1);
    }

    function testFuzz_OneBitOfTheSignature(uint256 bit, uint256 key) public {
        key = bound(key, 1, HOSPITALS);
        bit = bound(bit, 0, 65 * 8 - 1);
        IConciliaLedger.SignedUpdate memory one = update(key, JOB, 1);
        one.signature[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        refuse(one, key);
    }

    function testFuzz_MirroredSignature(uint256 key, bytes32 file) public {
        key = bound(key, 1, HOSPITALS);
        VM.assume(file != 0);
        address hospital = VM.addr(key);
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(key, digestOf(JOB, 1, hospital, file));
        bytes memory mirrored = abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), uint8(55 - v));
        refuse(IConciliaLedger.SignedUpdate(hospital, file, 100, BASE, mirrored), key);
    }

    function testFuzz_Replay(uint256 chain, address verifier, bytes32 job, uint32 round, bytes32 base) public {
        VM.assume(
            chain != block.chainid || verifier != address(LEDGER) || job != JOB || round != 1 || base != BASE
        );
        address hospital = VM.addr(1);
        IConciliaLedger.SignedUpdate memory one = update(1, JOB, 1);
        one.signature = signed(1, digestOf(verifier, chain, job, round, base, hospital, one.digest));
        refuse(one, 1);
    }

    function testFuzz_Fork(uint64 chain) public {
        VM.assume(chain != block.chainid && chain != 0);
        IConciliaLedger.SignedUpdate memory one = update(1, JOB, 1);
        VM.chainId(chain);
        refuse(one, 1);
    }

    function testFuzz_Deadline(uint64 late) public {
        IConciliaLedger.SignedUpdate[] memory batch = new IConciliaLedger.SignedUpdate[](1);
        batch[0] = update(1, JOB, 1);
        uint256 deadline = LEDGER.roundOf(JOB, 1).deadline;
        uint256 instant = deadline + bound(late, 1, 1 << 40);
        VM.warp(instant);
        VM.expectRevert(abi.encodeWithSelector(IConciliaLedger.DeadlinePassed.selector, deadline, instant));
        LEDGER.submitUpdates(JOB, 1, BASE, batch);
    }

    function testFuzz_Stranger(address sender, bytes32 root, uint32 count) public {
        VM.assume(sender != address(this));
        bytes memory refusal = abi.encodeWithSignature(
            "AccessControlUnauthorizedAccount(address,bytes32)", sender, LEDGER.COORDINATOR_ROLE()
        );
        VM.expectRevert(refusal);
        VM.prank(sender);
        LEDGER.commitUpdates(JOB, 1, BASE, root, count);
    }

    /// @dev Every leaf of every tree is proven at its place, and at no other place and with no other bit.
    function testFuzz_Inclusion(uint256 count, uint256 index, uint256 other, uint256 bit) public view {
        count = bound(count, 1, 80);
        index = bound(index, 0, count - 1);
        bytes32[] memory leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = keccak256(abi.encode(i));
        }
        bytes32 root = rootOf(leaves, 0, count);
        bytes32[] memory proof = proofOf(leaves, 0, count, index);
        bytes32 turned = bytes32(1 << (bit % 256));
        assert(this.verify(leaves[index], index, count, proof, root));
        assert(!this.verify(leaves[index] ^ turned, index, count, proof, root));
        assert(!this.verify(leaves[index], index, count, proof, root ^ turned));
        if (other != index) {
            assert(!this.verify(leaves[index], other, count, proof, root));
            assert(!this.verify(leaves[index], bound(other, 0, count), count, proof, root) || other % (count + 1) == index);
        }
        if (proof.length > 0) {
            proof[other % proof.length] ^= turned;
            assert(!this.verify(leaves[index], index, count, proof, root));
        }
    }

    /// @dev Nothing that was made up is found in a tree.
    function testFuzz_ForgedProof(bytes32 leaf, uint32 index, uint32 count, bytes32[] calldata proof, bytes32 root)
        public
        view
    {
        VM.assume(leaf != root);
        assert(!this.verify(leaf, index, count, proof, root));
    }

    /// @dev An update is either proven or disputed, never both, whatever its signature.
    function testFuzz_ProvenOrDisputed(uint256 place, bytes calldata noise, bool spoil, bool empty, bool stranger)
        public
    {
        place = bound(place, 0, HOSPITALS - 2);
        (IConciliaLedger.SignedUpdate[] memory all, bytes32[] memory leaves) = cohort(JOB, 1);
        IConciliaLedger.SignedUpdate memory one = all[place];
        if (spoil) one.signature = noise;
        if (empty) {
            one.digest = 0;
            if (!spoil) one.signature = signed(keys[place], digestOf(JOB, 1, one.hospital, 0));
        }
        leaves[place] = leafOf(one, JOB, 1);
        bool right = !empty && !stranger && !spoil;
        // With one hospital less the ledger takes one leaf less, so that the last leaf is left out.
        uint32 count = uint32(stranger ? HOSPITALS - 1 : HOSPITALS);
        if (stranger) LEDGER.revokeRole(LEDGER.HOSPITAL_ROLE(), one.hospital);
        bytes32 root = rootOf(leaves, 0, count);
        LEDGER.commitUpdates(JOB, 1, BASE, root, count);
        bytes32[] memory proof = proofOf(leaves, 0, count, place);
        bool proven = succeeds(abi.encodeCall(LEDGER.proveUpdate, (JOB, 1, one, uint32(place), proof)));
        bool disputed = succeeds(abi.encodeCall(LEDGER.disputeUpdate, (JOB, 1, one, uint32(place), proof)));
        assert(proven == right && disputed == !right);
    }

    function verify(bytes32 leaf, uint256 index, uint256 count, bytes32[] calldata proof, bytes32 root)
        external
        pure
        returns (bool)
    {
        return InclusionProof.verify(leaf, index, count, proof, root);
    }

    function cohort(bytes32 job, uint32 round)
        private
        view
        returns (IConciliaLedger.SignedUpdate[] memory all, bytes32[] memory leaves)
    {
        all = new IConciliaLedger.SignedUpdate[](HOSPITALS);
        leaves = new bytes32[](HOSPITALS);
        for (uint256 i = 0; i < HOSPITALS; ++i) {
            all[i] = update(keys[i], job, round);
            leaves[i] = leafOf(all[i], job, round);
        }
    }

    function succeeds(bytes memory call_) private returns (bool success) {
        (success,) = address(LEDGER).call(call_);
    }

    function refuse(IConciliaLedger.SignedUpdate memory one, uint256 key) private {
        IConciliaLedger.SignedUpdate[] memory batch = new IConciliaLedger.SignedUpdate[](1);
        batch[0] = one;
        VM.expectRevert(abi.encodeWithSelector(IConciliaLedger.InvalidSignature.selector, VM.addr(key)));
        LEDGER.submitUpdates(JOB, 1, BASE, batch);
    }
}
