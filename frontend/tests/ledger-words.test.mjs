import assert from "node:assert/strict";
import { test } from "node:test";
import { inclusion, latency, updateProblem } from "../src/ledger/update-words.js";
import { findingsByRound, verdictSentence } from "../src/ledger/verdict.js";
import { KINDS, more, sentenceOf } from "../src/ledger/words.js";

const JOB = "ab".repeat(32);
const HOSPITAL = `0x${"12".repeat(20)}`;
const who = () => "Utrecht";
const HOSPITAL_ROLE = "72d66193ff00a845b4aed5f27e02d9b558ef32be1495a41d00c5c5fb191a0763";

test("events in words", () => {
  const said = (name, given, round = 2) => sentenceOf({ name, round, arguments: given }, who);
  assert.equal(
    said("UpdateRecorded", { hospital: HOSPITAL, samples: 1203 }),
    "Utrecht submitted an update in round 2, from 1,203 images",
  );
  assert.equal(
    said("UpdateRejected", { hospital: HOSPITAL, reason: 7 }),
    "The update of Utrecht in round 2 was left out: values that are no numbers",
  );
  assert.equal(said("RoundClosed", { count: 1 }), "Round 2 was closed: 1 update folded into a new model");
  assert.equal(said("RoleGranted", { account: HOSPITAL, role: HOSPITAL_ROLE }), "Utrecht was made a hospital");
  assert.equal(said("RoleRevoked", { account: HOSPITAL, role: HOSPITAL_ROLE }), "Utrecht is no hospital any more");
  assert.equal(said("RoleGranted", { account: HOSPITAL, role: "ab".repeat(32) }), "Utrecht was made role abababab");
  assert.equal(said("EIP712DomainChanged", {}), "EIP712Domain Changed");
  const whole = { hospital: HOSPITAL, account: HOSPITAL, role: HOSPITAL_ROLE, samples: 1, reason: 1, count: 2 };
  for (const [name] of KINDS) {
    const text = said(name, { ...whole, deadline: 1, number: 1, index: 0, digest: JOB });
    assert.doesNotMatch(text, /undefined|NaN|null/);
  }
});

test("events lead to their update or lineage", () => {
  const at = { job: JOB, round: 2, account: HOSPITAL };
  assert.equal(more({ ...at, name: "UpdateRejected" }).href, `/update?job=${JOB}&round=2&hospital=${HOSPITAL}`);
  assert.equal(more({ ...at, name: "RoundClosed" }).href, `/lineage?job=${JOB}`);
  assert.equal(more({ name: "RoleGranted", job: null, account: HOSPITAL }), null);
});

test("what became of an update", () => {
  const round = (status) => ({ round: 3, status, global_digest: status === "closed" ? "cd".repeat(32) : null });
  assert.deepEqual(inclusion({ reason: null }, round("closed")), {
    word: "counted",
    tone: "good",
    sentence: "It was folded into the model of round 3.",
    digest: "cd".repeat(32),
  });
  assert.equal(inclusion({ reason: null }, round("open")).word, "waiting");
  assert.equal(inclusion({ reason: null }, round("aborted")).word, "void");
  const left = inclusion({ reason: 2 }, round("closed"));
  assert.equal(left.digest, null);
  assert.equal(
    left.sentence,
    "It counts nowhere: its file does not match. The stored file has another hash than the hospital signed.",
  );
});

test("an update's query is checked, its latency read", () => {
  assert.equal(updateProblem({ job: JOB, round: "1", hospital: HOSPITAL }), "");
  for (const wrong of [{ job: "" }, { round: "0" }, { round: "1e3" }, { round: "4294967296" }, { hospital: "0x12" }]) {
    assert.match(updateProblem({ job: JOB, round: "1", hospital: HOSPITAL, ...wrong }), /no update/);
  }
  const times = { received_at: "2026-11-24T10:00:00.000Z", confirmed_at: "2026-11-24T10:00:00.250Z" };
  assert.equal(latency(times), "250 ms");
  assert.equal(latency(undefined), "");
});

test("verdicts in words", () => {
  const verdict = { ok: true, rounds: 2, updates: 6, signatures: 1, rejected: 0, findings: [] };
  assert.equal(
    verdictSentence({ state: "done", verdict, detail: "" }),
    "Recomputed bit for bit: 2 rounds, 6 updates, 1 signature.",
  );
  const found = { ...verdict, ok: false, findings: [{}, {}] };
  assert.equal(
    verdictSentence({ state: "done", verdict: found, detail: "" }),
    "2 things do not agree with the ledger.",
  );
  assert.match(verdictSentence({ state: "failed", verdict: null, detail: "Redis is away" }), /Redis is away/);
});

test("findings come by round, with whose", () => {
  const findings = [
    { round: 2, hospital: HOSPITAL, digest: "aa", what: "its signature is nobody's" },
    { round: 0, hospital: null, digest: null, what: "the ledger has no round of this job" },
    { round: 2, hospital: null, digest: "bb", what: "folded again it is cc" },
  ];
  assert.deepEqual(findingsByRound(findings, who), [
    { round: 0, lines: [{ line: "The job: the ledger has no round of this job", digest: null }] },
    {
      round: 2,
      lines: [
        { line: "The update of Utrecht: its signature is nobody's", digest: "aa" },
        { line: "The round's model: folded again it is cc", digest: "bb" },
      ],
    },
  ]);
});
