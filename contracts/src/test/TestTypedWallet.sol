// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

/// @title TestTypedWallet
/// @notice An ERC-1271 wallet whose signatures end with a byte that says of what kind they are, as Loopring's do: it
/// accepts those of kind 2, which its owner signed. For tests only.
contract TestTypedWallet is IERC1271 {
    address private immutable OWNER;

    /// @param owner Whose signatures count as the wallet's.
    constructor(address owner) {
        OWNER = owner;
    }

    /// @inheritdoc IERC1271
    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 66 || signature[65] != 0x02) return 0xffffffff;
        (address recovered, , ) = ECDSA.tryRecover(hash, signature[:65]);
        return recovered == OWNER ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }
}
