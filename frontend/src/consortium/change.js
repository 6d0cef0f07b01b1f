// A role change from the decision to the ledger: looked up, signed by the administrator's wallet, relayed.
//
// Nothing is half done: the signature alone is the authority, it is sent once, and the contract takes it whole or not.

import { Problem } from "../problem.js";
import { article, roleNamed } from "./roles.js";
import { roleChangeDocument, SIGNATURE_SECONDS } from "./typed-data.js";

const ADDRESS = /^0x[0-9a-fA-F]{40}$/;

/** Where a change stands, in order. */
export const STEPS = ["check", "sign", "write", "done"];

// Refusals after which a person needs other words than the ledger's own.
const SENTENCES = {
  access_control_unauthorized_account:
    "Your account is no administrator any more, so the ledger refused. Nothing was changed.",
  invalid_account_nonce:
    "Another role change of yours reached the ledger in between. Nothing was changed; please try again.",
  deadline_passed:
    "The signature came too late: it is good for ten minutes. Nothing was changed; please try again, and if this repeats, check this computer's clock.",
  invalid_signature:
    "The signature is not by the account you are signed in with. Nothing was changed; choose that account in your wallet.",
  chain_unavailable:
    "The ledger does not answer. Nothing was changed as far as is known; look at the history before you try again.",
  receipt_timeout:
    "The change was sent and is in no block yet. It may still come: look at the history in a minute before you sign again.",
};

/** What is wrong with an address as typed, as a sentence; "" where nothing is seen here. Its checksum the ledger checks. */
export function addressProblem(text) {
  const address = text.trim();
  if (address === "") return "Type the address of an account.";
  if (!address.startsWith("0x")) return "An address begins with 0x.";
  if (address.length !== 42) return `An address has 42 characters; this has ${address.length}.`;
  if (!ADDRESS.test(address)) return "After 0x, an address has only the digits 0 to 9 and the letters a to f.";
  return /^0x0{40}$/.test(address) ? "Nobody has the key of that address." : "";
}

/**
 * An account as the ledger knows it, by its address as typed. Throws `Problem`: for an address that is none, or whose
 * capitals do not fit (EIP-55), before any wallet is asked.
 */
export async function lookUp(api, text) {
  const problem = addressProblem(text);
  if (problem) throw new Problem(problem, { code: "address_malformed" });
  // A wallet may show an address in capitals throughout; so written it carries no checksum (EIP-55).
  const address = /^0x[0-9A-F]{40}$/.test(text.trim()) ? text.trim().toLowerCase() : text.trim();
  try {
    return await api.json("chain", `/v1/members/${address}`);
  } catch (error) {
    if (error.status !== 422) throw error;
    const sentence = "The capital letters of this address do not fit the rest: a character is wrong. Copy it again.";
    throw new Problem(sentence, { status: 422, code: "address_checksum" });
  }
}

/**
 * Grant or revoke `role` of `account`. `tell(step, detail)` follows the STEPS; the returned receipt has the block.
 *
 * `by` is the administrator's address, `wallet()` their wallet on the right account and network, `network()` the
 * ledger's. A change given up through `signal` while the wallet asks is never sent. Throws `Problem` or `Error` with a
 * sentence.
 */
export async function changeRole(
  { role, account, granted },
  { api, by, wallet, network, tell, signal, now = Date.now },
) {
  tell("check");
  const [concerned, admin, holders] = await Promise.all([
    lookUp(api, account),
    lookUp(api, by),
    role === "admin" && !granted ? api.json("chain", "/v1/members?role=admin") : null,
  ]);
  const refused = refusal({ role, granted, concerned, admin, holders });
  if (refused) throw new Problem(refused, { code: "change_pointless" });
  const signing = await wallet();
  const { chainId, contract } = await network();
  stop(signal);
  tell("sign", signing.name);
  const deadline = Math.floor(now() / 1000) + SIGNATURE_SECONDS;
  const change = { role, account: concerned.address, granted, nonce: admin.nonce, deadline };
  const signature = await signing.signTypedData(roleChangeDocument(change, { chainId, contract }), admin.address);
  stop(signal);
  tell("write");
  try {
    const receipt = await api.json("chain", "/v1/role-changes", { json: { change, admin: admin.address, signature } });
    tell("done", receipt);
    return receipt;
  } catch (error) {
    if (!(error instanceof Problem)) {
      const unknown = "The connection broke while the change was sent. Look at the history before you try again.";
      throw new Problem(unknown, { code: "sent_unknown" });
    }
    throw SENTENCES[error.code] ? new Problem(SENTENCES[error.code], error) : error;
  }
}

/** Why a change must not, or need not, be signed; "" where it may be. */
export function refusal({ role, granted, concerned, admin, holders }) {
  if (!admin.roles.includes("admin")) return SENTENCES.access_control_unauthorized_account;
  const { one } = roleNamed(role);
  const holds = concerned.roles.includes(role);
  if (granted && holds) return `This account is ${article(one)} already. There is nothing to do.`;
  if (!granted && !holds) return `This account is no ${one} any more. There is nothing to do.`;
  if (!granted && role === "admin" && holders.length < 2) return LAST_ADMIN;
  return "";
}

/** What the page says instead of taking the last administrator's role. */
export const LAST_ADMIN =
  "This is the only administrator. Without one nobody could ever grant or revoke a role again, not even restore this " +
  "one. Make somebody else an administrator first.";

function stop(signal) {
  if (signal?.aborted) throw new Problem("You gave it up. Nothing was sent.", { code: "given_up" });
}
