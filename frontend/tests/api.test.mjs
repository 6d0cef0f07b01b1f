// Calling the services: tokens are kept, renewed and replaced once; nothing is tried for ever.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Api, parsed } from "../src/api.js";
import { Problem } from "../src/problem.js";

const NOW = Date.parse("2026-01-01T00:00:00Z");

let session;
let calls;
let answers;
let api;

beforeEach(() => {
  mock.timers.enable({ apis: ["Date"], now: NOW });
  let given = 0;
  session = {
    current: { address: "0xa" },
    exchanged: [],
    looked: 0,
    rolesChanged() {
      this.looked += 1;
    },
    async exchange(service) {
      this.exchanged.push(service);
      given += 1;
      return { token: `token-${given}`, expires_at: new Date(Date.now() + 60_000).toISOString() };
    },
  };
  calls = [];
  answers = [];
  api = new Api(session, async (url, options) => {
    calls.push({ url, ...options });
    return answers.shift() ?? Response.json({ url });
  });
});

afterEach(() => mock.timers.reset());

const refused = (status, code) => Response.json({ code, detail: `${code}.` }, { status });
const bearers = () => calls.map(({ headers }) => headers.Authorization);

test("a token is asked for once a service and kept", async () => {
  await api.json("model", "/v1/models");
  await api.json("model", "/v1/models");
  await api.json("chain", "/v1/contract");
  assert.deepEqual(session.exchanged, ["model", "chain"]);
  assert.deepEqual(bearers(), ["Bearer token-1", "Bearer token-1", "Bearer token-2"]);
  assert.equal(calls[0].url, "/api/model/v1/models");
});

test("parts of a page that ask at once share one token, and one refusal", async () => {
  assert.deepEqual(await Promise.all([api.token("model"), api.token("model"), api.token("chain")]), [
    "token-1",
    "token-1",
    "token-2",
  ]);
  assert.deepEqual(session.exchanged, ["model", "chain"]);

  session.current = { address: "0xb" };
  session.exchange = async () => {
    session.exchanged.push("refused");
    throw new Problem("Not now.", { code: "away" });
  };
  const told = await Promise.allSettled([api.token("model"), api.token("model")]);
  assert.deepEqual(
    told.map(({ reason }) => reason.code),
    ["away", "away"],
  );
  assert.equal(session.exchanged.length, 3);
  await assert.rejects(api.token("model"), { code: "away" }); // a refusal is not kept
  assert.equal(session.exchanged.length, 4);
});

test("who asks while another session's token is under way gets their own", async () => {
  const earlier = api.token("model");
  session.current = { address: "0xb" };
  assert.deepEqual(await Promise.all([earlier, api.token("model")]), ["token-1", "token-2"]);
});

test("a token is renewed 15 seconds before its end, and not sooner", async () => {
  await api.token("model");
  mock.timers.tick(44_999);
  assert.equal(await api.token("model"), "token-1");
  mock.timers.tick(1);
  assert.equal(await api.token("model"), "token-2");
});

test("a token of an earlier session is not used in another", async () => {
  await api.token("model");
  session.current = { address: "0xb" };
  assert.equal(await api.token("model"), "token-2");
});

test("a body of JSON is posted as such; other options are fetch's own", async () => {
  const { signal } = new AbortController();
  await api.json("auth", "/v1/applications", { json: { role: "auditor" }, headers: { "X-A": "1" }, signal });
  await api.json("auth", "/v1/applications/0xa", { method: "DELETE" });
  await api.json("auth", "/v1/x", { json: null, method: "PUT" });
  const [posted, deleted, put] = calls;
  assert.deepEqual([posted.method, posted.body, posted.signal], ["POST", '{"role":"auditor"}', signal]);
  assert.equal(posted.headers["Content-Type"], "application/json");
  assert.equal(posted.headers["X-A"], "1");
  assert.deepEqual([deleted.method, deleted.body, deleted.headers["Content-Type"]], ["DELETE", undefined, undefined]);
  assert.deepEqual([put.method, put.body], ["PUT", "null"]);
});

test("answers without a body are null, answers that are no JSON a problem", async () => {
  answers = [
    new Response(null, { status: 204 }),
    new Response("", { status: 202, headers: { "content-length": "0" } }),
  ];
  assert.equal(await api.json("model", "/a"), null);
  assert.equal(await api.json("model", "/a"), null);
  answers = [new Response("<html>")];
  await assert.rejects(api.json("model", "/a"), { name: "Problem", code: "not_json" });
  await assert.rejects(parsed(new Response("")), { code: "not_json" });
});

for (const [status, code] of [
  [401, "token_expired"],
  [401, "token_invalid"],
  [403, "role_missing"],
]) {
  test(`${code} is tried once more with a fresh token, which is kept`, async () => {
    await api.token("model");
    answers = [refused(status, code)];
    assert.deepEqual(await api.json("model", "/v1/x", { json: { a: 1 } }), { url: "/api/model/v1/x" });
    assert.deepEqual(bearers(), ["Bearer token-1", "Bearer token-2"]);
    assert.equal(calls[1].body, calls[0].body);
    assert.equal(await api.token("model"), "token-2");
    assert.equal(session.looked, 0);
  });

  test(`${code} twice is the end: no third try`, async () => {
    answers = [refused(status, code), refused(status, code), Response.json({})];
    await assert.rejects(api.json("model", "/v1/x"), (error) => error instanceof Problem && error.code === code);
    assert.equal(calls.length, 2);
    assert.equal(session.looked, code === "role_missing" ? 1 : 0);
  });
}

test("other refusals are not tried again", async () => {
  for (const [status, code] of [
    [401, "nonce_unknown"],
    [403, "cross_site"],
    [404, "no_model"],
    [500, "internal_error"],
    [503, "unavailable"],
  ]) {
    calls = [];
    answers = [refused(status, code)];
    await assert.rejects(api.call("model", "/v1/x"), { status, code });
    assert.equal(calls.length, 1, code);
  }
});

test("a second answer that is another problem is told as it is", async () => {
  answers = [refused(401, "token_expired"), refused(404, "no_model")];
  await assert.rejects(api.call("model", "/v1/x"), { status: 404, code: "no_model" });
});

test("where no token is to be had, nothing is asked", async () => {
  session.exchange = () => Promise.reject(new Problem("Please sign in.", { status: 401, code: "session_unknown" }));
  await assert.rejects(api.call("model", "/v1/x"), { code: "session_unknown" });
  assert.equal(calls.length, 0);
});

test("a network that is gone is a TypeError, at once", async () => {
  const gone = new Api(session, () => Promise.reject(new TypeError("Failed to fetch")));
  await assert.rejects(gone.call("model", "/v1/x"), TypeError);
});
