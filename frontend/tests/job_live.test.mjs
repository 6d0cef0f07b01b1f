import assert from "node:assert/strict";
import { test } from "node:test";
import { privacySentence, privacyWords } from "../src/format.js";
import { hospitals, tally } from "../src/job/hospitals.js";
import { NOTHING, reduce, unread, wanted } from "../src/job/live.js";
import { reasonWords } from "../src/reasons.js";
import {
  ADA,
  BOB,
  committed,
  merkleRound,
  merkleView,
  node,
  progress,
  recorded,
  rejected,
  round,
  transaction,
  view,
} from "./job-fixtures.mjs";

const play = (events, from = NOTHING) => events.reduce((state, event) => reduce(state, { at: 0, ...event }), from);
const snapshot = (fields) => ({ name: "snapshot", data: view(fields) });
const ledger = (data) => ({ name: "ledger", data });
const stageOf = (state, address) => hospitals(state, 1).find((row) => row.address === address)?.stage;

test("progress is kept by round and hospital", () => {
  const state = play([
    snapshot(),
    progress(ADA, "training", 0.25),
    progress(BOB, "downloading"),
    progress(ADA, "uploading"),
  ]);
  assert.equal(stageOf(state, ADA), "uploading");
  assert.equal(stageOf(state, BOB), "downloading");
});

test("the ledger's events count once, however often and in whatever order they come", () => {
  const events = [recorded(ADA, 7), recorded(BOB, 8), rejected(BOB, 9, 7)];
  const once = play([snapshot(), ...events.map(ledger)]);
  const again = play([
    snapshot(),
    ...events.toReversed().map(ledger),
    { name: "events", data: events },
    ledger(events[0]),
  ]);
  assert.equal(again.ledger.size, 3);
  assert.deepEqual(hospitals(again, 1), hospitals(once, 1));
});

test("two events of one block are two", () => {
  const state = play([snapshot(), ledger(recorded(ADA, 7, 1, 0)), ledger(recorded(BOB, 7, 1, 1))]);
  assert.equal(hospitals(state, 1).filter((row) => row.confirmed).length, 2);
});

test("a confirmation that comes before the node's own word shows the update as submitted", () => {
  const early = play([snapshot(), progress(ADA, "submitting"), ledger(recorded(ADA, 7))]);
  assert.equal(stageOf(early, ADA), "submitted");
  const late = play([progress(ADA, "training", 0.9), progress(ADA, "submitted", 1)], early);
  assert.equal(stageOf(late, ADA), "submitted");
  const evaluating = play([progress(ADA, "evaluating")], late);
  assert.equal(stageOf(evaluating, ADA), "evaluating");
  assert.ok(hospitals(evaluating, 1)[0].confirmed);
});

test("a snapshot in the middle replaces the view and keeps what the ledger said", () => {
  const before = play([snapshot(), progress(ADA, "training", 0.5), ledger(recorded(BOB, 8))]);
  const state = play([snapshot({ phase: "folding" })], before);
  assert.equal(state.view.phase, "folding");
  assert.equal(stageOf(state, ADA), undefined);
  assert.equal(hospitals(state, 1).find((row) => row.address === BOB).confirmed.block, 8);
});

test("events that came while a view was fetched are told again on top of it", () => {
  const old = { name: "view", data: view({ rounds: [round(0), round(1, { bytes_moved: 5 })] }) };
  const state = play([
    snapshot(),
    { name: "asking" },
    progress(ADA, "submitted", 1),
    { name: "job", data: { phase: "folding", round: 1, detail: "", paused: true } },
    old,
  ]);
  assert.equal(stageOf(state, ADA), "submitted");
  assert.deepEqual([state.view.phase, state.view.paused], ["folding", true]);
  assert.equal(state.view.rounds[1].bytes_moved, 5);
});

test("a view that a snapshot overtook is not taken", () => {
  const state = play([
    snapshot(),
    { name: "asking" },
    snapshot({ phase: "evaluating" }),
    { name: "view", data: view() },
  ]);
  assert.equal(state.view.phase, "evaluating");
});

test("events before any view are kept until it comes", () => {
  const state = play([{ name: "asking" }, progress(ADA, "training", 0.5), { name: "view", data: view() }]);
  assert.equal(stageOf(state, ADA), "training");
  assert.equal(play([progress(ADA, "training")]).view, null);
});

test("progress of a round that was not read yet makes that round", () => {
  const state = play([snapshot(), progress(ADA, "downloading", 0, 2)]);
  assert.deepEqual(
    state.view.rounds.map((each) => each.round),
    [0, 1, 2],
  );
  assert.equal(hospitals(state, 2)[0].stage, "downloading");
});

test("a latency is known once the transaction is", () => {
  const state = play([snapshot(), ledger(recorded(ADA, 7))]);
  assert.equal(hospitals(state, 1)[0].confirmed.latency, null);
  const known = play([{ name: "transactions", data: [transaction(7, 0.4)] }], state);
  assert.equal(hospitals(known, 1)[0].confirmed.latency, 0.4);
});

test("of a transaction that carries several, each hospital has its own latency", () => {
  const rows = [
    { ...transaction(7, 0.4), hospital: ADA },
    { ...transaction(7, 2.5), hospital: BOB },
  ];
  const events = [ledger(recorded(ADA, 7, 1, 0)), ledger(recorded(BOB, 7, 1, 1))];
  const state = play([snapshot(), ...events, { name: "transactions", data: rows.slice(0, 1) }]);
  const latencies = (of) => hospitals(of, 1).map((row) => [row.address, row.confirmed.latency]);
  assert.deepEqual(latencies(state), [
    [ADA, 0.4],
    [BOB, null],
  ]);
  assert.deepEqual(wanted(state, events[1]), ["transactions"]);
  assert.deepEqual(latencies(play([{ name: "transactions", data: rows }], state)), [
    [ADA, 0.4],
    [BOB, 2.5],
  ]);
});

test("an update that is collected waits for the commitment, and is on the ledger after it", () => {
  const begun = [{ name: "snapshot", data: merkleView() }, progress(ADA, "submitting"), progress(BOB, "training", 0.5)];
  const waiting = play([...begun, { name: "recorded", data: merkleRound({ collected: [ADA] }) }]);
  const row = (state, address) => hospitals(state, 1).find((each) => each.address === address);
  assert.deepEqual(
    [row(waiting, ADA).stage, row(waiting, ADA).collected, row(waiting, ADA).uploaded, row(waiting, ADA).confirmed],
    ["submitted", true, true, null],
  );
  assert.equal(row(waiting, BOB).collected, false);
  assert.equal(tally(hospitals(waiting, 1)), "0 of 2 on the ledger, 1 collected");
  const after = { name: "recorded", data: merkleRound({ updates: [ADA, BOB] }) };
  const done = play([ledger(committed(9)), { name: "transactions", data: [transaction(9, 0.6)] }, after], waiting);
  assert.deepEqual(row(done, BOB).confirmed, { block: 9, transaction: committed(9).transaction, latency: 0.6 });
  assert.deepEqual([row(done, ADA).collected, row(done, BOB).stage], [false, "submitted"]);
  assert.equal(tally(hospitals(done, 1)), "2 of 2 on the ledger");
});

test("a Merkle job's rounds are read while they are open and once they are committed", () => {
  const start = play([{ name: "snapshot", data: merkleView() }]);
  assert.deepEqual(unread(start), [1]);
  assert.deepEqual(wanted(start, { name: "snapshot", data: merkleView() }), ["events", "transactions", "recorded"]);
  assert.deepEqual(wanted(start, progress(ADA, "submitted", 1)), ["recorded"]);
  assert.deepEqual(wanted(start, progress(ADA, "training", 0.1)), []);
  assert.deepEqual(wanted(start, ledger(committed(9))), ["recorded", "transactions"]);
  const two = { name: "events", data: [committed(9, 1), committed(19, 2)] };
  assert.deepEqual(wanted(start, two), ["recorded"]);
  const later = play([{ name: "snapshot", data: merkleView({ phase: "evaluating", round: 2 }) }, two]);
  assert.deepEqual(unread(later), [2, 1]);
  const read = play([{ name: "recorded", data: merkleRound({ updates: [ADA] }) }], later);
  assert.deepEqual(unread(read), [2]);
  const plain = play([snapshot(), two]);
  assert.deepEqual([unread(plain), wanted(plain, progress(ADA, "submitted", 1))], [[], []]);
});

test("hospitals that are online and silent are shown while the round waits for them, by name", () => {
  const nodes = { name: "nodes", data: [node(BOB, "Site 10"), node(ADA, "Site 2"), node("0xgone", "Site 1", 900)] };
  const state = play([snapshot(), nodes]);
  assert.deepEqual(
    hospitals(state, 1).map((row) => [row.site, row.stage]),
    [
      ["Site 2", null],
      ["Site 10", null],
    ],
  );
  assert.deepEqual(hospitals(play([snapshot({ phase: "folding" })], state), 1), []);
});

test("rejections are in words, from the ledger's number or the aggregator's name", () => {
  const state = play([snapshot(), ledger(recorded(ADA, 7)), ledger(rejected(ADA, 8, 8))]);
  assert.match(hospitals(state, 1)[0].rejected, /too far/);
  assert.equal(reasonWords("norm_too_large"), reasonWords(8));
  assert.equal(reasonWords(99), "reason 99");
  assert.equal(tally(hospitals(state, 1)), "1 of 1 on the ledger, 1 rejected");
});

test("what must be fetched follows from events", () => {
  const state = play([snapshot()]);
  const job = (phase) => ({ name: "job", data: { phase, round: 1, detail: "", paused: false } });
  assert.deepEqual(wanted(state, { name: "round", data: { round: 1 } }), ["view"]);
  assert.deepEqual(wanted(state, ledger(recorded(ADA, 7))), ["transactions"]);
  assert.deepEqual(
    wanted(play([{ name: "transactions", data: [transaction(7, 1)] }], state), ledger(recorded(ADA, 7))),
    [],
  );
  assert.deepEqual(wanted(state, snapshot()), ["events", "transactions"]);
  assert.deepEqual(wanted(state, job("finished")), ["view", "transactions"]);
  assert.deepEqual(wanted(state, { name: "verification", data: {} }), []);
  assert.equal(reduce(state, { name: "verification", data: {}, at: 0 }), state);
});

test("a phase's beginning is remembered, within its round", () => {
  const job = (phase, number, at) => ({ name: "job", data: { phase, round: number, detail: "", paused: false }, at });
  const state = play([snapshot(), job("folding", 1, 10), job("folding", 1, 12), job("evaluating", 1, 20)]);
  assert.deepEqual(state.since, { folding: 10, evaluating: 20 });
  assert.deepEqual(play([job("opening", 2, 30)], state).since, { opening: 30 });
});

test("what privacy cost a hospital stands beside it, and nothing where the job has none", () => {
  const spent = { epsilon: 2.345, delta: 0.00001, noise: 1, clip: 1, rate: 0.1, steps: 10 };
  const fields = { rounds: [round(1, { privacy: { [ADA]: spent }, progress: { [BOB]: { stage: "training" } } })] };
  const rows = hospitals(play([snapshot(fields)]), 1);
  assert.deepEqual(
    rows.map((row) => [row.address, row.privacy]),
    [
      [ADA, spent],
      [BOB, null],
    ],
  );
  assert.equal(privacyWords(spent), "ε 2.35 at δ 1e-5");
  assert.match(privacySentence({ noise: 1.5, clip: 1 }), /a lesion .* noise 1.5 times the clipping norm of 1$/);
  assert.equal(privacySentence(undefined), "no differential privacy");
  assert.equal(privacySentence(undefined, { name: "fedavg" }), "no differential privacy");
  const central = privacySentence(undefined, { name: "dp_fedavg", radius: 0.5, noise: 2 });
  assert.match(central, /of the models, .* cut to 0\.5, and noise of 2 .* by the aggregator, which sees them without$/);
  assert.equal(privacyWords({ ...spent, central: true }), "ε 2.35 at δ 1e-5, of the models");
});
