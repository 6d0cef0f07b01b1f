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
 * A stream that ends or breaks is opened again from the last event seen. Throws `Problem` where opening is refused for
 * good (4xx other than 429).
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
    try {
      alive();
      const response = await open(last, watchdog.signal);
      on.state("live");
      const parser = createParser({
        onEvent({ id, event, data }) {
          if (id !== undefined) last = id;
          wait = FIRST_WAIT_MS;
          on.event(event ?? "message", JSON.parse(data));
        },
      });
      const decoder = new TextDecoder();
      for await (const chunk of chunks(response.body)) {
        alive();
        parser.feed(decoder.decode(chunk, { stream: true }));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      on.state("waiting", error);
      await pause(wait * (0.5 + Math.random() / 2), signal);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    } finally {
      clearTimeout(timer);
      watchdog.abort();
      signal.removeEventListener("abort", stop);
    }
  }
}

async function* chunks(body) {
  const reader = body.getReader();
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    const cut = () => {
      clearTimeout(timer);
      resolve();
    };
    signal.addEventListener("abort", cut, { once: true });
  });
}
