// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Inclusion proofs of RFC 9162 (Certificate Transparency 2.0, the trees of RFC 6962), with SHA-256
library InclusionProof {
    /// @dev RFC 9162, 2.1.1: what is hashed as a leaf can never be taken for a node, nor a node for a leaf.
    bytes1 private constant LEAF = 0x00;
    bytes1 private constant NODE = 0x01;

    /// @dev Hash of a signed update as a leaf; its data is `digest || signature`.
    /// @param digest EIP-712 digest of the update.
    /// @param signature Whatever the hospital gave as its signature, byte for byte.
    function leafOf(bytes32 digest, bytes calldata signature) internal pure returns (bytes32) {
        return sha256(abi.encodePacked(LEAF, digest, signature));
    }

    /// @dev Whether a leaf stands at `index` of the `count` leaves under `root`; RFC 9162, 2.1.3.2, step by step.
    function verify(bytes32 leaf, uint256 index, uint256 count, bytes32[] calldata proof, bytes32 root)
        internal
        pure
        returns (bool)
    {
        if (index >= count) return false;
        uint256 fn = index;
        uint256 sn = count - 1;
        bytes32 r = leaf;
        for (uint256 i = 0; i < proof.length; ++i) {
            if (sn == 0) return false;
            if (fn & 1 == 1 || fn == sn) {
                r = sha256(abi.encodePacked(NODE, proof[i], r));
                while (fn & 1 == 0 && fn != 0) {
                    fn >>= 1;
                    sn >>= 1;
                }
            } else {
                r = sha256(abi.encodePacked(NODE, r, proof[i]));
            }
            fn >>= 1;
            sn >>= 1;
        }
        return sn == 0 && r == root;
    }
}
