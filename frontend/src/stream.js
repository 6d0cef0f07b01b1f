// Server-sent events over fetch: with a bearer token, which EventSource cannot send, and resumed where they broke off.
//
// Source: WHATWG HTML, "Server-sent events": Last-Event-ID, retry.

import { createParser } from "eventsource-parser";
import { Problem } from "./problem.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;
const SILENCE_MS = 25_000; // the server says something every 10 seconds

/**
 * Follow a stream until `signal` aborts. `open(lastEventId, signal)` resolves to a response; `on.event(name, data)` gets
 * each event once and in order, `on.state("live" | "waiting", problem)` how the connection does.
 *
 * A stream that ends, breaks or falls silent is opened again from the last event seen, after a wait that doubles as long
 * as nothing comes. Throws `Problem` where opening is refused for good (4xx other than 429).
 */
export async function follow(open, on, signal) {
  let last = "";
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    const watchdog = new AbortController();
    const stop = () => watchdog.abort();
    signal.addEventListener("abort", stop, { once: true });
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_MS);
    };
    let heard = false;
    try {
      alive();
      const response = await unlessCut(open(last, watchdog.signal), watchdog.signal);
      on.state("live");
      const parser = createParser({
        onEvent({ id, event, data }) {
          if (id !== undefined) last = id;
          heard = true;
          wait = FIRST_WAIT_MS;
          on.event(event ?? "message", JSON.parse(data));
        },
      });
      const decoder = new TextDecoder();
      for await (const chunk of chunks(response.body, watchdog.signal)) {
        alive();
        parser.feed(decoder.decode(chunk, { stream: true }));
      }
      if (!heard && !signal.aborted) on.state("waiting");
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      on.state("waiting", error);
    } finally {
      clearTimeout(timer);
      watchdog.abort();
      signal.removeEventListener("abort", stop);
    }
    await pause(wait * (0.5 + Math.random() / 2), signal);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

async function* chunks(body, signal) {
  const reader = body.getReader();
  try {
    while (true) {
      const { done, value } = await unlessCut(reader.read(), signal);
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What a promise comes to, unless `signal` aborts first: what it waits for may know nothing of the signal. */
async function unlessCut(promise, signal) {
  let cut;
  const aborted = new Promise((_, reject) => {
    cut = () => reject(signal.reason);
    signal.addEventListener("abort", cut, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", cut);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done, { once: true });
  });
}
