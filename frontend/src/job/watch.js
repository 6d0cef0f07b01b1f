// Watching a job: its event stream, and what has to be fetched beside it. Wires the services to the pure state of live.js.

import { ENDED } from "../jobs.js";
import { Problem } from "../problem.js";
import { follow } from "../stream.js";
import { NOTHING, reduce, unread, wanted } from "./live.js";

const SETTLE_MS = 120; // events come in bursts; one fetch answers for all of a burst
const NODES_MS = 1_000;
const LONGEST_RETRY_MS = 8_000;

/**
 * Watch a job until `signal` aborts or the job has ended and all of it is known.
 *
 * `changed(state, connection)` is called after every change; connection is "connecting", "live", "waiting" (with the
 * error that it waits for as third argument) or "over". Throws `Problem` where the job may not be watched or is none.
 */
export async function watch(api, job, changed, signal, followed = follow) {
  const ending = new AbortController();
  const both = AbortSignal.any([signal, ending.signal]);
  let state = NOTHING;
  let connection = "connecting";
  let problem = null;

  const tell = () => !both.aborted && changed(state, connection, problem);
  const take = (name, data) => {
    const event = { name, data, at: Date.now() };
    state = reduce(state, event);
    for (const what of wanted(state, event)) ask[what]();
    tell();
  };
  const get = (name, service, path) => async () => {
    if (name === "view") take("asking");
    take(name, await api.json(service, path, { signal: both }));
  };
  const readRounds = async () => {
    for (const number of unread(state)) await get("recorded", "chain", `/v1/jobs/${job}/rounds/${number}`)();
  };
  const ask = {
    view: fetcher(get("view", "aggregator", `/v1/jobs/${job}`), SETTLE_MS, both),
    events: fetcher(get("events", "chain", `/v1/jobs/${job}/events`), SETTLE_MS, both),
    transactions: fetcher(get("transactions", "chain", `/v1/transactions?job=${job}&limit=1000`), SETTLE_MS, both),
    recorded: fetcher(readRounds, SETTLE_MS, both),
    nodes: fetcher(get("nodes", "aggregator", "/v1/nodes"), NODES_MS, both),
  };
  const askAll = () => Object.values(ask).forEach((each) => void each());

  ask.nodes(0);
  const open = (last, cut) => {
    const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
    return api.call("aggregator", `/v1/jobs/${job}/stream`, { headers, signal: cut });
  };
  const on = {
    event: take,
    state(now, error = null) {
      connection = now;
      problem = error;
      // A service that answers and has no stream to give can still be asked how things are.
      if (now === "waiting" && error instanceof Problem) askAll();
      tell();
    },
  };
  const done = settled(ask, () => state.view !== null && ENDED.has(state.view.phase), both).then(() => {
    connection = "over";
    tell();
  });
  try {
    await Promise.race([followed(open, on, both), done]);
  } finally {
    ending.abort();
  }
}

/** Resolves once `ended()` and nothing is being fetched any more. */
function settled(ask, ended, signal) {
  return new Promise((resolve) => {
    const look = setInterval(() => {
      if (ended() && Object.values(ask).every((each) => each.idle())) resolve();
    }, 500);
    signal.addEventListener("abort", () => clearInterval(look), { once: true });
  });
}

/** A function that has `run` done soon, one at a time, again where it was asked for meanwhile, and until it works. */
function fetcher(run, delay, signal) {
  let timer;
  let running = false;
  let again = false;
  let failures = 0;
  const go = async () => {
    timer = undefined;
    running = true;
    try {
      await run();
      failures = 0;
    } catch (error) {
      const refused = error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429;
      failures += 1;
      again ||= !refused;
    }
    running = false;
    if (again) {
      again = false;
      ask(failures ? Math.min(500 * 2 ** failures, LONGEST_RETRY_MS) : delay);
    }
  };
  const ask = (wait = delay) => {
    if (signal.aborted) return;
    if (running) again = true;
    else timer ??= setTimeout(go, wait);
  };
  ask.idle = () => !running && timer === undefined;
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  return ask;
}
