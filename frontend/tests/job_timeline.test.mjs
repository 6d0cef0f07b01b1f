import assert from "node:assert/strict";
import { test } from "node:test";
import { NOTHING, reduce } from "../src/job/live.js";
import { clock, outcome, remaining, timeline } from "../src/job/timeline.js";
import { badge, latest, roundOf } from "../src/jobs.js";
import { JOB, round, scores, view } from "./job-fixtures.mjs";

const T = (text) => `2026-11-24T10:${text}Z`;
const opened = round(1, { opened_at: T("01:00") });
const closed = round(1, { opened_at: T("01:00"), closed_at: T("02:00"), seconds_folding: 5 });
const at = (fields, since = {}) => ({ ...NOTHING, view: view(fields), since });
const states = (state, number) => timeline(state, number).map((step) => step.state);

test("steps of the current round are done, now and next", () => {
  assert.deepEqual(states(at({ phase: "training" }), 1), ["done", "now", "next", "next"]);
  assert.deepEqual(states(at({ phase: "opening", round: 2, rounds: [round(0), closed] }), 2), [
    "now",
    "next",
    "next",
    "next",
  ]);
  assert.deepEqual(states(at({ phase: "publishing", rounds: [closed] }), 1), ["done", "done", "done", "done"]);
  assert.deepEqual(states(at({ phase: "finished", rounds: [closed] }), 1), ["done", "done", "done", "done"]);
});

test("a round that was given up did not come to its end", () => {
  const state = at({ phase: "opening", round: 2, rounds: [round(0), opened] });
  assert.deepEqual(states(state, 1), ["done", "done", "never", "never"]);
  assert.equal(outcome(state, 1), "given up");
  assert.equal(outcome(state, 2), "open");
  const event = { name: "RoundAborted", job: JOB, round: 1, block: 9, log_index: 0, transaction: "0x9", arguments: {} };
  assert.equal(outcome(reduce(at({ rounds: [opened] }), { name: "ledger", data: event, at: 0 }), 1), "given up");
  assert.deepEqual(states(at({ phase: "stopped", round: 2, rounds: [closed] }), 2), [
    "never",
    "never",
    "never",
    "never",
  ]);
});

test("times come from what is written, then from what was heard", () => {
  const done = timeline(at({ phase: "opening", round: 2, rounds: [closed, round(2, { opened_at: T("02:30") })] }), 1);
  assert.deepEqual(
    done.map((step) => step.seconds),
    [null, 55, 5, 30],
  );
  const heard = timeline(at({ phase: "folding", rounds: [opened] }, { folding: Date.parse(T("01:40")) }), 1);
  assert.equal(heard[1].seconds, 40);
  assert.equal(heard[2].at, Date.parse(T("01:40")));
});

test("a secure round is unmasked before it is folded", () => {
  const spec = { ...view().spec, secure: { threshold: 0.67 } };
  const heard = { unmasking: Date.parse(T("01:30")), folding: Date.parse(T("01:40")) };
  const state = at({ phase: "unmasking", rounds: [opened], spec }, { unmasking: heard.unmasking });
  assert.deepEqual(states(state, 1), ["done", "done", "now", "next", "next"]);
  const steps = timeline(at({ phase: "folding", rounds: [opened], spec }, heard), 1);
  assert.deepEqual(
    steps.map((step) => [step.phase, step.seconds]),
    [
      ["opening", null],
      ["training", 30],
      ["unmasking", 10],
      ["folding", null],
      ["evaluating", null],
    ],
  );
});

test("round 0 has one step", () => {
  assert.deepEqual(states(at({ phase: "baseline", round: 0 }), 0), ["now"]);
  assert.deepEqual(states(at({ rounds: [round(0, { pooled: scores(0.2) })] }), 0), ["done"]);
});

test("a deadline is waited for in training only", () => {
  const now = Date.parse(T("10:50"));
  assert.equal(remaining(view(), now), 10);
  assert.equal(remaining(view({ phase: "folding" }), now), null);
  assert.equal(remaining(view({ rounds: [] }), now), null);
});

test("a clock counts in days, hours, minutes and seconds", () => {
  assert.deepEqual([0, 9.2, 65, 3723, 2 * 86400 + 61, -4].map(clock), [
    "0:00",
    "0:10",
    "1:05",
    "1:02:03",
    "2 d 0:01:01",
    "0:00",
  ]);
});

test("a job's rounds in words", () => {
  assert.equal(roundOf(view({ phase: "baseline", round: 0 })), "before round 1 of 3");
  assert.equal(roundOf(view()), "round 1 of 3");
  assert.equal(roundOf(view({ round: 4, rounds: [closed] })), "round 4, 1 of 3 closed");
  assert.equal(roundOf(view({ phase: "finished", rounds: [closed] })), "1 of 3 rounds");
});

test("a job's badge and newest scores", () => {
  assert.equal(badge(view({ paused: true })).label, "paused");
  assert.equal(badge(view({ paused: true, phase: "stopped" })).label, "stopped");
  assert.equal(latest(view()), null);
  assert.equal(
    latest(view({ rounds: [round(0, { pooled: scores(0.1) }), round(1, { pooled: scores(0.3) }), round(2)] })).round,
    1,
  );
});
