import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { hospitals } from "../src/job/hospitals.js";
import { watch } from "../src/job/watch.js";
import { Problem } from "../src/problem.js";
import { ADA, JOB, node, recorded, transaction, view } from "./job-fixtures.mjs";

/** Services that answer from `answers` by path, and note what was asked. */
function services(answers) {
  const asked = [];
  const json = async (_service, path) => {
    asked.push(path.replace(JOB, "JOB"));
    const answer = answers[path.split("?")[0].replace(JOB, "JOB")];
    const value = typeof answer === "function" ? answer() : answer;
    if (value instanceof Error) throw value;
    return value;
  };
  return { asked, json, call: async () => ({}) };
}

const quiet = { "/v1/nodes": [node(ADA, "North")], "/v1/jobs/JOB/events": [], "/v1/transactions": [] };

/** Runs `watch` with a stream in the test's hands. */
async function watching(api, body) {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  const leaving = new AbortController();
  let on;
  const followed = (_open, handlers, signal) => {
    on = handlers;
    return new Promise((resolve) => signal.addEventListener("abort", resolve));
  };
  const seen = { state: null, connection: null };
  const changed = (state, connection) => Object.assign(seen, { state, connection });
  const done = watch(api, JOB, changed, leaving.signal, followed);
  const pass = async (ms) => {
    for (let step = 0; step < ms; step += 20) {
      mock.timers.tick(20);
      for (let turn = 0; turn < 10; turn += 1) await Promise.resolve();
    }
  };
  try {
    await body({ on, seen, pass, done });
  } finally {
    leaving.abort();
    await done;
    mock.timers.reset();
  }
}

test("a burst of events is answered by one fetch", async () => {
  const api = services({ ...quiet, "/v1/jobs/JOB": view({ detail: "read" }) });
  await watching(api, async ({ on, seen, pass }) => {
    on.state("live");
    on.event("snapshot", view());
    for (let times = 0; times < 5; times += 1) on.event("round", { round: 1 });
    await pass(400);
    assert.equal(api.asked.filter((path) => path === "/v1/jobs/JOB").length, 1);
    assert.equal(seen.state.view.detail, "read");
    assert.equal(seen.connection, "live");
  });
});

test("an unknown latency has transactions fetched, until they can be", async () => {
  let failures = 2;
  const transactions = () => (failures-- > 0 ? new TypeError("offline") : [transaction(7, 0.3)]);
  const api = services({ ...quiet, "/v1/transactions": transactions });
  await watching(api, async ({ on, seen, pass }) => {
    on.event("snapshot", view());
    on.event("ledger", recorded(ADA, 7));
    await pass(5000);
    assert.equal(hospitals(seen.state, 1)[0].confirmed.latency, 0.3);
    assert.equal(failures, -1);
  });
});

test("what is refused is not asked for again and again", async () => {
  const api = services({ ...quiet, "/v1/jobs/JOB": new Problem("no", { status: 403, code: "role_missing" }) });
  await watching(api, async ({ on, pass }) => {
    on.event("snapshot", view());
    on.event("round", { round: 1 });
    await pass(5000);
    assert.equal(api.asked.filter((path) => path === "/v1/jobs/JOB").length, 1);
  });
});

test("a service that has no stream to give is asked how things are", async () => {
  const api = services({ ...quiet, "/v1/jobs/JOB": view({ detail: "read" }) });
  await watching(api, async ({ on, seen, pass }) => {
    on.state("waiting", new Problem("too many", { status: 503, code: "too_many_streams" }));
    await pass(400);
    assert.equal(seen.state.view.detail, "read");
    assert.equal(seen.connection, "waiting");
  });
});

test("a job that has ended is let go once all of it is known", async () => {
  const ended = view({ phase: "finished" });
  const api = services({ ...quiet, "/v1/jobs/JOB": ended });
  await watching(api, async ({ on, seen, pass, done }) => {
    on.state("live");
    on.event("snapshot", view());
    on.event("job", { phase: "finished", round: 1, detail: "published", paused: false });
    await pass(100);
    assert.equal(seen.connection, "live");
    await pass(3000);
    assert.equal(seen.connection, "over");
    await done;
  });
});
