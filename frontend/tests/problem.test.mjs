// Refusals and failures become sentences.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Problem, problemFrom, sentence } from "../src/problem.js";

const answer = (status, body) => new Response(typeof body === "string" ? body : JSON.stringify(body), { status });

test("a problem document keeps its code, status and members", async () => {
  const problem = await problemFrom(answer(422, { code: "odd", detail: "It is odd.", errors: [1] }));
  assert.ok(problem instanceof Problem && problem instanceof Error);
  assert.deepEqual([problem.status, problem.code, problem.message], [422, "odd", "It is odd."]);
  assert.deepEqual(problem.document.errors, [1]);
});

test("codes that people meet have sentences of their own", async () => {
  for (const code of [
    "nonce_unknown",
    "message_expired",
    "session_unknown",
    "unauthorized",
    "role_missing",
    "no_model",
  ]) {
    const problem = await problemFrom(answer(401, { code, detail: "as a program says it" }));
    assert.notEqual(problem.message, "as a program says it", code);
    assert.match(problem.message, /^[A-Z].+\.$/);
  }
});

test("an answer that is no problem document still says something", async () => {
  for (const body of ["<html>502</html>", "", "null", '"text"', "[]", "{}"]) {
    const problem = await problemFrom(answer(502, body));
    assert.deepEqual([problem.code, problem.message], ["http_502", "The service answered with 502."], body);
  }
});

test("one sentence about any error", () => {
  assert.equal(sentence(new Problem("As it is.")), "As it is.");
  assert.match(sentence(new TypeError("Failed to fetch")), /cannot be reached/);
  assert.equal(sentence(new Error("boom")), "boom");
  assert.equal(sentence("just text"), "just text");
  assert.equal(sentence(undefined), "undefined");
});
