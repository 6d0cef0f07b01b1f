import assert from "node:assert/strict";
import { test } from "node:test";
import { addressProblem, changeRole, LAST_ADMIN, lookUp } from "../src/consortium/change.js";
import { ROLES, roleIdentified } from "../src/consortium/roles.js";
import { roleChangeDocument } from "../src/consortium/typed-data.js";
import { Problem } from "../src/problem.js";

const ADMIN = "0x6813Eb9362372EEF6200f3b1dbC3f819671cBA69";
const SOMEBODY = "0x1efF47bc3a10a45D4B230B5d10E37751FE6AA718";
const NETWORK = { chainId: 1337, contract: "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23" };

test("role identifiers are those of the contract", () => {
  // keccak-256 of "COORDINATOR", "HOSPITAL", "CLINICIAN" and "AUDITOR" by eth_utils; the administrator's is zero
  assert.deepEqual(Object.fromEntries(ROLES.map(({ name, identifier }) => [name, identifier])), {
    admin: "0x0000000000000000000000000000000000000000000000000000000000000000",
    coordinator: "0xd578563424ab02f85ec03c6b1aee04947ebdd4a30db46cba3bcd7f56ef40b199",
    hospital: "0x72d66193ff00a845b4aed5f27e02d9b558ef32be1495a41d00c5c5fb191a0763",
    clinician: "0x74ec59aedccfb5102d11940a4a32c758eeadcc2cfb33b2881de0b927192d18cb",
    auditor: "0xd8994f6d76f930dc5ea8c60e38e6334a87bb8539cc3082ac6828681c33316e3d",
  });
  for (const role of ROLES) assert.equal(roleIdentified(role.identifier.slice(2)), role);
  assert.equal(roleIdentified("ab".repeat(32)), undefined);
});

test("the typed data names the ledger, the types and the decision", () => {
  const change = { role: "hospital", account: SOMEBODY, granted: true, nonce: 3, deadline: 1_800_000_600 };
  const document = roleChangeDocument(change, NETWORK);
  assert.equal(document.primaryType, "RoleChange");
  assert.deepEqual(document.domain, {
    name: "Concilia",
    version: "1",
    chainId: 1337,
    verifyingContract: NETWORK.contract,
  });
  const type = document.types.RoleChange.map((member) => `${member.type} ${member.name}`).join(",");
  assert.equal(
    `RoleChange(${type})`,
    "RoleChange(bytes32 role,address account,bool granted,uint256 nonce,uint256 deadline)",
  );
  assert.deepEqual(document.message, { ...change, role: ROLES.find((role) => role.name === "hospital").identifier });
});

test("an address that is none is said to be none", () => {
  assert.equal(addressProblem(SOMEBODY), "");
  assert.equal(addressProblem(` ${SOMEBODY.toLowerCase()} `), "");
  assert.match(addressProblem(""), /Type the address/);
  assert.match(addressProblem(SOMEBODY.slice(2)), /begins with 0x/);
  assert.match(addressProblem(SOMEBODY.slice(0, -1)), /this has 41/);
  assert.match(addressProblem(`${SOMEBODY.slice(0, -1)}g`), /letters a to f/);
  assert.match(addressProblem(`0x${"0".repeat(40)}`), /Nobody has the key/);
});

test("a wrong checksum is a sentence, all capitals carry none", async () => {
  const asked = [];
  const api = {
    async json(_service, path) {
      asked.push(path);
      if (path.endsWith("DEAD")) throw new Problem("schema", { status: 422, code: "invalid_request" });
      return { address: SOMEBODY, roles: [], nonce: 0 };
    },
  };
  await assert.rejects(lookUp(api, `${SOMEBODY.slice(0, -4)}DEAD`), { code: "address_checksum" });
  await lookUp(api, `0x${SOMEBODY.slice(2).toUpperCase()}`);
  assert.equal(asked.at(-1), `/v1/members/${SOMEBODY.toLowerCase()}`);
  await assert.rejects(lookUp(api, "0x12"), { code: "address_malformed" });
  assert.equal(asked.length, 2);
});

function ledger({ roles = [], adminRoles = ["admin"], admins = 2, post } = {}) {
  const posts = [];
  const api = {
    posts,
    async json(service, path, options) {
      assert.equal(service, "chain");
      if (path === "/v1/role-changes") {
        posts.push(options.json);
        return post ? post() : { block: 12, transaction: "0xab" };
      }
      if (path === "/v1/members?role=admin") return Array.from({ length: admins }, () => ({ address: ADMIN }));
      if (path.endsWith(ADMIN)) return { address: ADMIN, roles: adminRoles, nonce: 7 };
      return { address: SOMEBODY, roles, nonce: 0 };
    },
  };
  return api;
}

function run(api, change, { sign = async () => "0x5167", signal, wallet } = {}) {
  const steps = [];
  const signing = { name: "MetaMask", signTypedData: sign };
  const promise = changeRole(change, {
    api,
    by: ADMIN,
    wallet: wallet ?? (async () => signing),
    network: async () => NETWORK,
    tell: (step) => steps.push(step),
    signal,
    now: () => 1_800_000_000_500,
  });
  return { steps, promise };
}

const GRANT = { role: "auditor", account: SOMEBODY.toLowerCase(), granted: true };

test("what is signed is what is sent, once", async () => {
  const api = ledger();
  let signed;
  const { steps, promise } = run(api, GRANT, {
    async sign(document, address) {
      signed = { document, address };
      return "0x5167";
    },
  });
  assert.deepEqual(await promise, { block: 12, transaction: "0xab" });
  assert.deepEqual(steps, ["check", "sign", "write", "done"]);
  const change = { role: "auditor", account: SOMEBODY, granted: true, nonce: 7, deadline: 1_800_000_600 };
  assert.deepEqual(api.posts, [{ change, admin: ADMIN, signature: "0x5167" }]);
  assert.deepEqual(signed, { document: roleChangeDocument(change, NETWORK), address: ADMIN });
});

test("a refused signature, a wrong account or a lost role sends nothing", async () => {
  const refused = new Problem("You declined to sign.", { code: "wallet_refused" });
  for (const [options, made, message] of [
    [{}, { sign: () => Promise.reject(refused) }, /declined/],
    [{}, { wallet: () => Promise.reject(new Error("MetaMask shows another account.")) }, /another account/],
    [{ adminRoles: [] }, {}, /no administrator any more/],
    [{ roles: ["auditor"] }, {}, /an auditor already/],
  ]) {
    const api = ledger(options);
    const { steps, promise } = run(api, GRANT, made);
    await assert.rejects(promise, { message });
    assert.deepEqual(api.posts, []);
    assert.ok(!steps.includes("write"));
  }
});

test("a signature that comes after giving up is not sent", async () => {
  const api = ledger();
  const givenUp = new AbortController();
  const sign = async () => {
    givenUp.abort();
    return "0x5167";
  };
  const { promise } = run(api, GRANT, { sign, signal: givenUp.signal });
  await assert.rejects(promise, { code: "given_up" });
  assert.deepEqual(api.posts, []);
});

test("the last administrator stays", async () => {
  const revoke = { role: "admin", account: SOMEBODY, granted: false };
  const alone = run(ledger({ roles: ["admin"], admins: 1 }), revoke);
  await assert.rejects(alone.promise, { message: LAST_ADMIN });
  assert.deepEqual(alone.steps, ["check"]);
  const two = run(ledger({ roles: ["admin"], admins: 2 }), revoke);
  assert.equal((await two.promise).block, 12);
});

test("the ledger's refusals become sentences that say what to do", async () => {
  for (const [code, message] of [
    ["invalid_account_nonce", /try again/],
    ["access_control_unauthorized_account", /no administrator any more/],
    ["receipt_timeout", /before you sign again/],
    ["enforced_pause", /the ledger's own words/],
  ]) {
    const post = () => Promise.reject(new Problem("the ledger's own words", { status: 409, code }));
    await assert.rejects(run(ledger({ post }), GRANT).promise, { code, message });
  }
  const broken = () => Promise.reject(new TypeError("failed to fetch"));
  await assert.rejects(run(ledger({ post: broken }), GRANT).promise, { code: "sent_unknown" });
});
