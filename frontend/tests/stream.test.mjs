// Event streams: resumed wherever they break, nothing lost, nothing twice, and never in a hurry.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Problem } from "../src/problem.js";
import { follow } from "../src/stream.js";

const SILENCE_MS = 25_000;
const EVENTS = [
  { id: "1-0", name: "snapshot", data: { site: "Universitätsklinik 🏥 Zürich", round: 1 } },
  { id: "2-0", name: "ledger", data: { text: "a\nb", block: 7 }, lines: true },
  { id: "3-0", name: undefined, data: "ohne Namen: äöü" },
  { id: "3-1", name: "progress", data: { fraction: 0.5 } },
];

/** The bytes of events as a server writes them, with comments between; JSON over several lines where `lines` says so. */
function written(events, newline = "\n") {
  const parts = events.map(({ id, name, data, lines }) => {
    const json = JSON.stringify(data, null, lines ? 1 : 0).split("\n");
    const rows = [`id: ${id}`, ...(name ? [`event: ${name}`] : []), ...json.map((row) => `data: ${row}`)];
    return `: heartbeat ♥${newline}${newline}${rows.join(newline)}${newline}${newline}`;
  });
  return new TextEncoder().encode(parts.join(""));
}

const after = (id) => EVENTS.slice(EVENTS.findIndex((event) => event.id === id) + 1);

/** A response whose body gives `chunks` and then ends, breaks, or stays silent until it is cut. */
function streamed(chunks, then, signal) {
  return new Response(
    new ReadableStream({
      start(controller) {
        for (const chunk of chunks) controller.enqueue(chunk);
        if (then === "end") controller.close();
        if (then === "break") controller.error(new TypeError("network error"));
        if (then === "silence") signal?.addEventListener("abort", () => controller.error(signal.reason));
      },
    }),
  );
}

/** Bytes in pieces of at most `size`. */
const pieces = (bytes, size) =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.subarray(at * size, (at + 1) * size));

let waits; // how long each pause between connections would have been
let guards; // what runs after a silence, for the connection that is open
let following;
let got;
let states;

beforeEach(() => {
  waits = [];
  guards = new Map();
  following = new AbortController();
  got = [];
  states = [];
  let timers = 0;
  mock.method(globalThis, "setTimeout", (act, milliseconds) => {
    timers += 1;
    if (milliseconds === SILENCE_MS) guards.set(timers, act);
    else {
      waits.push(milliseconds);
      setImmediate(act);
    }
    return timers;
  });
  mock.method(globalThis, "clearTimeout", (timer) => guards.delete(timer));
});

afterEach(() => mock.restoreAll());

const on = {
  event(name, data) {
    got.push({ name, data });
    if (got.length === EVENTS.length) following.abort();
  },
  state: (state) => states.push(state),
};

const whole = EVENTS.map(({ name = "message", data }) => ({ name, data }));

for (const newline of ["\n", "\r\n"]) {
  for (const then of ["end", "break"]) {
    test(`a cut at every byte loses nothing and repeats nothing (${JSON.stringify(newline)}, ${then})`, async () => {
      const length = written(EVENTS, newline).length;
      for (let cut = 0; cut <= length; cut += 1) {
        got = [];
        following = new AbortController();
        const asked = [];
        const open = async (last, signal) => {
          asked.push(last);
          const bytes = written(after(last), newline);
          return asked.length === 1 ? slow([bytes.subarray(0, cut)], then) : streamed([bytes], "silence", signal);
        };
        await follow(open, on, following.signal);
        assert.deepEqual(got, whole, `cut at ${cut}`);
        assert.equal(asked[0], "");
        if (asked.length > 1) assert.equal(asked[1], cutAfter(cut, newline), `cut at ${cut}`);
      }
    });
  }

  test(`pieces that end within a letter or a line make the same events (${JSON.stringify(newline)})`, async () => {
    const bytes = written(EVENTS, newline);
    for (const size of [1, 2, 3, 5, 7, 64]) {
      got = [];
      following = new AbortController();
      await follow(async (_, signal) => streamed(pieces(bytes, size), "silence", signal), on, following.signal);
      assert.deepEqual(got, whole, `pieces of ${size}`);
    }
    for (let at = 1; at < bytes.length; at += 1) {
      got = [];
      following = new AbortController();
      const two = [bytes.subarray(0, at), bytes.subarray(at)];
      await follow(async (_, signal) => streamed(two, "silence", signal), on, following.signal);
      assert.deepEqual(got, whole, `split at ${at}`);
    }
  });
}

/** A response that is read piece by piece before it ends or breaks: an error set at once overtakes what is queued. */
function slow(chunks, then) {
  const left = [...chunks];
  return new Response(
    new ReadableStream(
      {
        pull(controller) {
          if (left.length) controller.enqueue(left.shift());
          else if (then === "end") controller.close();
          else controller.error(new TypeError("network error"));
        },
      },
      { highWaterMark: 0 },
    ),
  );
}

/** The id of the last event that was whole within the first `cut` bytes. */
function cutAfter(cut, newline) {
  let last = "";
  EVENTS.forEach(({ id }, at) => {
    // A blank line ends an event; of "\r\n" its "\r" is enough.
    const end = written(EVENTS.slice(0, at + 1), newline).length - (newline === "\r\n" ? 1 : 0);
    if (cut >= end) last = id;
  });
  return last;
}

test("waits double while nothing comes, up to five seconds, and begin anew after an event", async () => {
  let opened = 0;
  const open = async () => {
    opened += 1;
    if (opened === 10) return slow([written(EVENTS.slice(0, 1))], "break");
    if (opened === 12) following.abort();
    throw new TypeError("Failed to fetch");
  };
  await follow(open, on, following.signal);
  const longest = [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000, 250, 500];
  assert.equal(waits.length, longest.length);
  waits.forEach((wait, at) => {
    assert.ok(wait >= longest[at] / 2 && wait <= longest[at], `wait ${at}: ${wait}`);
  });
  assert.deepEqual(states, [...Array(9).fill("waiting"), "live", "waiting", "waiting"]);
});

test("a server that accepts and ends at once is not asked in a hurry either", async () => {
  let opened = 0;
  const open = async () => {
    opened += 1;
    if (opened === 5) following.abort();
    return streamed([], "end");
  };
  await follow(open, on, following.signal);
  assert.equal(waits.filter((wait, at) => wait >= 125 * 2 ** at).length, 4);
  assert.equal(states.filter((state) => state === "waiting").length, 4);
});

test("a stream that ends after events goes on without a word", async () => {
  const open = async (last, signal) =>
    last ? streamed([written(after(last))], "silence", signal) : slow([written(EVENTS.slice(0, 2))], "end");
  await follow(open, on, following.signal);
  assert.deepEqual(states, ["live", "live"]);
  assert.deepEqual(got, whole);
});

for (const [what, silent] of [
  ["a stream", (signal) => streamed([written(EVENTS.slice(0, 1))], "silence", signal)],
  ["a stream that knows nothing of signals", () => streamed([written(EVENTS.slice(0, 1))], "silence")],
  ["an opening that never ends", () => new Promise(() => {})],
]) {
  test(`${what}, silent for 25 seconds, is opened again`, async () => {
    const asked = [];
    const open = async (last, signal) => {
      asked.push(last);
      return asked.length === 1 ? silent(signal) : streamed([written(after(last))], "silence", signal);
    };
    const ended = follow(open, on, following.signal);
    await settled();
    assert.equal(guards.size, 1, "one timer guards one connection");
    [...guards.values()][0]();
    await ended;
    assert.deepEqual(got, whole);
    assert.equal(asked.length, 2);
    assert.equal(guards.size, 0, "no timer outlives the stream");
  });
}

test("every piece, a comment included, pushes the silence away", async () => {
  let controller;
  const open = async () => new Response(new ReadableStream({ start: (given) => (controller = given) }));
  const ended = follow(open, on, following.signal);
  await settled();
  const [first] = guards.keys();
  controller.enqueue(new TextEncoder().encode(": still here\n\n"));
  await settled();
  const [second] = guards.keys();
  assert.ok(guards.size === 1 && second > first);
  following.abort();
  await ended;
});

for (const status of [400, 401, 403, 404, 410]) {
  test(`refused for good (${status}) is thrown`, async () => {
    const refusal = new Problem("No.", { status, code: "no" });
    await assert.rejects(
      follow(() => Promise.reject(refusal), on, following.signal),
      (error) => error === refusal,
    );
    assert.deepEqual([waits, states], [[], []]);
  });
}

for (const status of [429, 500, 503]) {
  test(`refused for now (${status}) is tried again`, async () => {
    let opened = 0;
    const open = async (_, signal) => {
      opened += 1;
      if (opened === 1) throw new Problem("Later.", { status, code: "later" });
      return streamed([written(EVENTS)], "silence", signal);
    };
    await follow(open, on, following.signal);
    assert.deepEqual([opened, states, got], [2, ["waiting", "live"], whole]);
  });
}

test("aborting ends it: while it opens, while it listens, while it waits, and before it began", async () => {
  const opening = follow(() => new Promise(() => {}), on, following.signal);
  await settled();
  following.abort();
  await opening;

  following = new AbortController();
  let cut;
  const open = async (_, signal) => {
    cut = signal;
    return streamed([], "silence", signal);
  };
  const listening = follow(open, on, following.signal);
  await settled();
  following.abort();
  await listening;
  assert.ok(cut.aborted, "the connection is let go");

  following = new AbortController();
  mock.method(globalThis, "setTimeout", () => 0); // time stands still
  const waiting = follow(() => Promise.reject(new TypeError("away")), on, following.signal);
  await settled();
  following.abort();
  await waiting;

  let opened = 0;
  await follow(async () => (opened += 1), on, following.signal);
  assert.equal(opened, 0);
});

test("an outage of any length leaves no listener on the signal", async () => {
  let listeners = 0;
  const { signal } = following;
  const [add, remove] = [signal.addEventListener.bind(signal), signal.removeEventListener.bind(signal)];
  signal.addEventListener = (...args) => {
    listeners += 1;
    add(...args);
  };
  signal.removeEventListener = (...args) => {
    listeners -= 1;
    remove(...args);
  };
  let opened = 0;
  const open = async () => {
    opened += 1;
    assert.ok(listeners <= 1, `${listeners} listeners at opening ${opened}`);
    if (opened === 20) following.abort();
    throw new TypeError("away");
  };
  await follow(open, on, signal);
  assert.equal(listeners, 0);
});

/** All that can happen without time passing has happened. */
const settled = async () => {
  for (let turn = 0; turn < 20; turn += 1) await new Promise(setImmediate);
};
