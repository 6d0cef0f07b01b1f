// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestWallet} from "./TestWallet.sol";

/// @title TestWalletFactory
/// @notice Makes wallets at addresses that are known before (CREATE2). For tests only.
contract TestWalletFactory {
    /// @param owner Whose signatures count as the wallet's.
    /// @param salt What tells the owner's wallets apart.
    function create(address owner, bytes32 salt) external returns (address) {
        return address(new TestWallet{salt: salt}(owner));
    }
}
