// The ledger's network: what a wallet must be on, and what it is told when it does not know it.

import { parsed } from "./api.js";
import { problemFrom } from "./problem.js";

let asked;

/** `{chainId, name, rpcUrl, contract}` of the ledger. Throws `Problem`. */
export function network() {
  asked ??= ask().catch((error) => {
    asked = undefined;
    throw error;
  });
  return asked;
}

async function ask() {
  const response = await fetch("/api/chain/v1/contract");
  if (!response.ok) throw await problemFrom(response);
  const { chain_id: chainId, address } = await parsed(response);
  const rpcUrl = new URL("/api/chain/v1/rpc", location.origin).href;
  return { chainId, name: "Concilia consortium", rpcUrl, contract: address };
}
