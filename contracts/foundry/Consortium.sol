// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ConciliaLedger} from "../src/ConciliaLedger.sol";
import {IConciliaLedger} from "../src/IConciliaLedger.sol";
import {VM} from "./Vm.sol";

/// @notice A ledger whose admin and coordinator is this contract, and hospitals whose keys it knows.
abstract contract Consortium {
    bytes32 internal constant JOB = keccak256("job");
    bytes32 internal constant BASE = keccak256("base");
    uint256 internal constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint256 internal constant HOSPITALS = 12;

    ConciliaLedger internal immutable LEDGER;
    uint256[] internal keys; // in ascending order of address

    constructor() {
        LEDGER = new ConciliaLedger(address(this), address(this));
        for (uint256 key = 1; key <= HOSPITALS; ++key) {
            keys.push(key);
            for (uint256 i = keys.length - 1; i > 0 && VM.addr(keys[i]) < VM.addr(keys[i - 1]); --i) {
                (keys[i], keys[i - 1]) = (keys[i - 1], keys[i]);
            }
            LEDGER.grantRole(LEDGER.HOSPITAL_ROLE(), VM.addr(key));
        }
    }

    function digestOf(address verifier, uint256 chain, bytes32 job, uint32 round, bytes32 base, address hospital, bytes32 file)
        internal
        pure
        returns (bytes32)
    {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Concilia"),
                keccak256("1"),
                chain,
                verifier
            )
        );
        bytes32 structure = keccak256(
            abi.encode(
                keccak256(
                    "Update(address hospital,bytes32 job,uint32 round,bytes32 base,bytes32 digest,uint64 samples,bytes32 metrics)"
                ),
                hospital,
                job,
                round,
                base,
                file,
                uint64(100),
                BASE
            )
        );
        return keccak256(abi.encodePacked("\x19\x01", domain, structure));
    }

    function digestOf(bytes32 job, uint32 round, address hospital, bytes32 file) internal view returns (bytes32) {
        return digestOf(address(LEDGER), block.chainid, job, round, BASE, hospital, file);
    }

    function signed(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function update(uint256 key, bytes32 job, uint32 round)
        internal
        view
        returns (IConciliaLedger.SignedUpdate memory)
    {
        address hospital = VM.addr(key);
        bytes32 file = keccak256(abi.encode(key));
        return IConciliaLedger.SignedUpdate(
            hospital, file, 100, BASE, signed(key, digestOf(job, round, hospital, file))
        );
    }

    function leafOf(IConciliaLedger.SignedUpdate memory of_, bytes32 job, uint32 round)
        internal
        view
        returns (bytes32)
    {
        return sha256(abi.encodePacked(bytes1(0), digestOf(job, round, of_.hospital, of_.digest), of_.signature));
    }

    /// @dev MTH of RFC 9162, 2.1.1, by its recursion.
    function rootOf(bytes32[] memory leaves, uint256 from, uint256 to) internal pure returns (bytes32) {
        if (to - from == 1) return leaves[from];
        uint256 k = split(to - from);
        return sha256(abi.encodePacked(bytes1(0x01), rootOf(leaves, from, from + k), rootOf(leaves, from + k, to)));
    }

    /// @dev PATH of RFC 9162, 2.1.3.1, by its recursion.
    function proofOf(bytes32[] memory leaves, uint256 from, uint256 to, uint256 m)
        internal
        pure
        returns (bytes32[] memory proof)
    {
        if (to - from == 1) return new bytes32[](0);
        uint256 k = split(to - from);
        bool left = m < k;
        bytes32[] memory below =
            left ? proofOf(leaves, from, from + k, m) : proofOf(leaves, from + k, to, m - k);
        proof = new bytes32[](below.length + 1);
        for (uint256 i = 0; i < below.length; ++i) {
            proof[i] = below[i];
        }
        proof[below.length] = left ? rootOf(leaves, from + k, to) : rootOf(leaves, from, from + k);
    }

    function split(uint256 n) private pure returns (uint256 k) {
        k = 1;
        while (k * 2 < n) k *= 2;
    }

    function bound(uint256 x, uint256 least, uint256 most) internal pure returns (uint256) {
        return least + x % (most - least + 1);
    }
}
