// Who is signed in: sign-in, roles that change, and the ends of a session.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Session } from "../src/session.js";

const ADA = { address: "0xAda", roles: ["clinician"], expires_at: "2026-01-01T08:00:00Z", csrf_token: "csrf-1" };
const BOB = { address: "0xBob", roles: ["auditor"], expires_at: "2026-01-01T08:00:00Z", csrf_token: "csrf-2" };

let routes;
let calls;
let session;
let changes;

beforeEach(() => {
  calls = [];
  routes = {};
  session = new Session(async (url, options = {}) => {
    const call = `${options.method ?? "GET"} ${url.replace("/api/auth/v1", "")}`;
    calls.push({ call, ...options });
    return routes[call](options);
  });
  changes = [];
  session.addEventListener("change", () => changes.push(session.current));
});

const ok =
  (body, status = 200) =>
  () =>
    Response.json(body, { status });
const no = (status, code) => () => Response.json({ code, detail: "x" }, { status });
const token = (roles) => ok({ token: "t", audience: "model", roles, expires_at: "2026-01-01T00:05:00Z" });

async function signedIn() {
  routes["GET /browser-session"] = ok(ADA);
  await session.refresh();
  changes.length = 0;
}

test("at first nobody is known, then who the cookie says", async () => {
  assert.equal(session.current, undefined);
  assert.equal(session.holds(), false);
  routes["GET /browser-session"] = ok(ADA);
  await session.refresh();
  assert.deepEqual(session.current, ADA);
  assert.equal(changes.length, 1);
});

test("what is under way for somebody who signs out is given up, and is no session that timed out", async () => {
  await signedIn();
  routes["POST /tokens"] = ({ signal }) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  routes["DELETE /browser-session"] = () => new Response(null, { status: 204 });
  const asked = session.exchange("model");
  const left = session.signOut();
  await assert.rejects(asked, { status: 401, code: "session_unknown" });
  await assert.rejects(session.exchange("chain"), { status: 401 });
  await left;
  assert.equal(session.ended, false);
  assert.deepEqual(changes, [null]);
  assert.deepEqual(
    calls.slice(1).map(({ call }) => call),
    ["POST /tokens", "DELETE /browser-session"],
  );
  routes["GET /browser-session"] = ok(BOB);
  await session.refresh();
  routes["POST /tokens"] = token(["auditor"]);
  assert.equal((await session.exchange("model")).token, "t");
});

test("no cookie is nobody", async () => {
  routes["GET /browser-session"] = no(401, "unauthorized");
  assert.equal(await session.refresh(), null);
  assert.equal(session.current, null);
  assert.equal(changes.length, 1);
});

test("a service that fails leaves what was known, and says so", async () => {
  await signedIn();
  routes["GET /browser-session"] = no(503, "chain_unavailable");
  await assert.rejects(session.refresh(), { code: "chain_unavailable" });
  assert.deepEqual(session.current, ADA);
  session.rolesChanged(); // nobody waits for it: it must not end in an unhandled rejection
  await new Promise(setImmediate);
  assert.deepEqual(changes, []);
});

test("changes are told only where something changed", async () => {
  await signedIn();
  await session.refresh();
  routes["POST /tokens"] = token(["clinician"]);
  await session.exchange("model");
  assert.equal(changes.length, 0);
  routes["GET /browser-session"] = ok({ ...ADA, roles: [] });
  await session.refresh();
  await session.refresh();
  assert.equal(changes.length, 1);
});

test("roles: any, one of several, none", async () => {
  await signedIn();
  assert.deepEqual([session.holds(), session.holds("admin"), session.holds("admin", "clinician")], [true, false, true]);
  routes["GET /browser-session"] = ok({ ...ADA, roles: [] });
  await session.refresh();
  assert.deepEqual([session.holds(), session.holds("clinician")], [false, false]);
});

test("signing in: the server's message, the wallet's signature, the new session", async () => {
  routes["POST /challenges"] = ok({ message: "sign this\nnonce", nonce: "n", expires_at: "…" });
  routes["POST /browser-sessions"] = ok(ADA, 201);
  const asked = [];
  const wallet = { signMessage: async (...what) => asked.push(what) && "0xsigned" };
  await session.signIn(wallet, "0xAda");
  assert.deepEqual(asked, [["sign this\nnonce", "0xAda"]]);
  assert.deepEqual(
    calls.map(({ call, body }) => [call, JSON.parse(body)]),
    [
      ["POST /challenges", { address: "0xAda" }],
      ["POST /browser-sessions", { message: "sign this\nnonce", signature: "0xsigned" }],
    ],
  );
  assert.deepEqual([session.current, changes.length], [ADA, 1]);
});

test("a refused signature asks the server for nothing more", async () => {
  routes["POST /challenges"] = ok({ message: "m" });
  const wallet = { signMessage: () => Promise.reject(new Error("declined")) };
  await assert.rejects(session.signIn(wallet, "0xAda"), /declined/);
  assert.deepEqual([calls.length, session.current, changes.length], [1, undefined, 0]);
});

test("a message used before is a problem and no session", async () => {
  routes["POST /challenges"] = ok({ message: "m" });
  routes["POST /browser-sessions"] = no(401, "nonce_unknown");
  await assert.rejects(session.signIn({ signMessage: async () => "0x" }, "0xAda"), { code: "nonce_unknown" });
  assert.equal(session.current, undefined);
});

for (const answered of [() => new Response(null, { status: 204 }), no(401, "session_unknown")]) {
  test(`signing out carries the CSRF token (answered ${answered().status})`, async () => {
    await signedIn();
    routes["DELETE /browser-session"] = answered;
    await session.signOut();
    assert.equal(calls.at(-1).headers["X-CSRF-Token"], "csrf-1");
    assert.deepEqual([session.current, changes.length], [null, 1]);
  });
}

const away = () => Promise.reject(new TypeError("Failed to fetch"));
for (const [answered, error] of [
  [no(503, "store_unavailable"), { code: "store_unavailable" }],
  [away, TypeError],
]) {
  test(`a sign-out that failed says so, and the page forgets the session (${error.code ?? error.name})`, async () => {
    await signedIn();
    routes["DELETE /browser-session"] = answered;
    await assert.rejects(session.signOut(), error);
    assert.deepEqual([session.current, session.ended, changes], [null, false, [null]]);
    await assert.rejects(session.exchange("model"), { code: "session_unknown" });
  });
}

test("a token carries the CSRF token, and roles that changed are noticed by it", async () => {
  await signedIn();
  routes["POST /tokens"] = token([]);
  assert.equal((await session.exchange("model")).token, "t");
  const { headers, body } = calls.at(-1);
  assert.deepEqual([headers["X-CSRF-Token"], JSON.parse(body)], ["csrf-1", { audience: "model" }]);
  assert.deepEqual([session.current, changes.length], [{ ...ADA, roles: [] }, 1]);
});

for (const code of ["session_unknown", "unauthorized"]) {
  test(`the end of a session is noticed when a token is asked for (${code})`, async () => {
    await signedIn();
    routes["POST /tokens"] = no(401, code);
    await assert.rejects(session.exchange("model"), { code });
    assert.deepEqual([session.current, changes.length], [null, 1]);
    const before = calls.length;
    await assert.rejects(session.exchange("model"), { code: "session_unknown" });
    assert.equal(calls.length, before, "nobody asks again for nobody");
  });
}

test("a store that is away does not end a session", async () => {
  await signedIn();
  routes["POST /tokens"] = no(503, "store_unavailable");
  await assert.rejects(session.exchange("model"), { code: "store_unavailable" });
  assert.deepEqual([session.current, changes.length], [ADA, 0]);
});

for (const [what, next] of [
  ["nobody", null],
  ["somebody else", BOB],
]) {
  test(`a token that arrives when ${what} is signed in is not handed out`, async () => {
    await signedIn();
    let answer;
    routes["POST /tokens"] = () => new Promise((resolve) => (answer = resolve));
    const exchanging = session.exchange("model");
    routes["GET /browser-session"] = next ? ok(next) : no(401, "unauthorized");
    await session.refresh();
    answer(token(["clinician"])());
    await assert.rejects(exchanging, { code: "session_unknown" });
    assert.deepEqual(session.current, next);
  });
}
