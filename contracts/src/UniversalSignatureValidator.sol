// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

/// @title UniversalSignatureValidator
/// @notice Whether a signature is an address's: an account's (ECDSA), a contract wallet's (ERC-1271), or that of a wallet
/// which its factory has yet to make (ERC-6492).
/// @dev Never deployed. Its creation code with the constructor's arguments is the data of an `eth_call` to nobody, which
/// returns one byte, 1 or 0; a revert, or no answer, means no. The order of the ways is that of ERC-6492's reference
/// (`ValidateSigOffchain`). Two things differ from it: a signature of less than 32 bytes is a wallet's to judge and no
/// reason to revert, and nothing is called on the way to a wallet that exists: it is asked as it stands, not as it would
/// stand after whatever the signature's maker wants to happen first.
contract UniversalSignatureValidator {
    bytes32 private constant MAGIC_SUFFIX = 0x6492649264926492649264926492649264926492649264926492649264926492;

    /// @param signer Whose signature it is to be.
    /// @param hash What was signed.
    /// @param signature The signature; under ERC-6492 `abi.encode(factory, factoryCalldata, signature)` and the suffix.
    constructor(address signer, bytes32 hash, bytes memory signature) {
        bool valid = _isValid(signer, hash, signature);
        // solhint-disable-next-line no-inline-assembly
        assembly ("memory-safe") {
            mstore(0, valid)
            return(31, 1)
        }
    }

    function _isValid(address signer, bytes32 hash, bytes memory signature) private returns (bool) {
        bool exists = signer.code.length > 0;
        if (!_isWrapped(signature)) {
            return exists ? _accepts(signer, hash, signature) : _recovers(signer, hash, signature);
        }
        // solhint-disable-next-line no-inline-assembly
        assembly ("memory-safe") {
            mstore(signature, sub(mload(signature), 32)) // without the suffix
        }
        (address factory, bytes memory order, bytes memory inner) = abi.decode(signature, (address, bytes, bytes));
        if (!exists) {
            // solhint-disable-next-line avoid-low-level-calls
            (bool made, ) = factory.call(order);
            if (!made) return false;
        }
        return _accepts(signer, hash, inner);
    }

    function _isWrapped(bytes memory signature) private pure returns (bool) {
        if (signature.length < 32) return false;
        bytes32 last;
        // solhint-disable-next-line no-inline-assembly
        assembly ("memory-safe") {
            last := mload(add(signature, mload(signature)))
        }
        return last == MAGIC_SUFFIX;
    }

    function _accepts(address wallet, bytes32 hash, bytes memory signature) private view returns (bool) {
        if (wallet.code.length == 0) return false;
        // solhint-disable-next-line avoid-low-level-calls
        (bool answered, bytes memory answer) = wallet.staticcall(
            abi.encodeCall(IERC1271.isValidSignature, (hash, signature))
        );
        return answered && answer.length == 32 && bytes32(answer) == bytes32(IERC1271.isValidSignature.selector);
    }

    function _recovers(address account, bytes32 hash, bytes memory signature) private pure returns (bool) {
        (address recovered, ECDSA.RecoverError failure, ) = ECDSA.tryRecover(hash, signature);
        return failure == ECDSA.RecoverError.NoError && recovered == account;
    }
}
