// The typed data by which an administrator grants or revokes a role; the contract verifies it itself. Pure.
//
// Source: EIP-712. Types and domain equal the contract's: a signature over anything else is void.

import { roleNamed } from "./roles.js";

/** Seconds from now for which a signature is good. */
export const SIGNATURE_SECONDS = 600;

const TYPES = {
  EIP712Domain: [
    { name: "name", type: "string" },
    { name: "version", type: "string" },
    { name: "chainId", type: "uint256" },
    { name: "verifyingContract", type: "address" },
  ],
  RoleChange: [
    { name: "role", type: "bytes32" },
    { name: "account", type: "address" },
    { name: "granted", type: "bool" },
    { name: "nonce", type: "uint256" },
    { name: "deadline", type: "uint256" },
  ],
};

/** What `eth_signTypedData_v4` takes for `{role, account, granted, nonce, deadline}` on the ledger of a network. */
export function roleChangeDocument(change, { chainId, contract }) {
  return {
    types: TYPES,
    primaryType: "RoleChange",
    domain: { name: "Concilia", version: "1", chainId, verifyingContract: contract },
    message: { ...change, role: roleNamed(change.role).identifier },
  };
}
