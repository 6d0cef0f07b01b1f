// Calling the services: one origin, short-lived access tokens kept in memory, one new try with a fresh token.

import { Problem, problemFrom } from "./problem.js";

const MARGIN_MS = 15_000; // a token is renewed this long before its end
const STALE = new Set(["token_expired", "token_invalid", "session_ended", "role_missing"]);

/** Services by name, called with the tokens that `session` can be exchanged for. `fetch` is given for tests. */
export class Api {
  #session;
  #fetch;
  #tokens = new Map();
  #asking = new Map(); // exchanges under way: a page's parts load side by side

  constructor(session, fetch = globalThis.fetch.bind(globalThis)) {
    this.#session = session;
    this.#fetch = fetch;
  }

  /** An answer's JSON (null where it is empty). Throws `Problem`. */
  async json(service, path, options) {
    const response = await this.call(service, path, options);
    return response.status === 204 || response.headers.get("content-length") === "0" ? null : await parsed(response);
  }

  /** An answer, whatever its kind. Options are fetch's own, and `json` for a body. Throws `Problem`. */
  async call(service, path, options = {}) {
    let response = await this.#once(service, path, options, false);
    if (response.status === 401 || response.status === 403) {
      const problem = await problemFrom(response);
      if (!STALE.has(problem.code)) throw problem;
      response = await this.#once(service, path, options, true);
    }
    if (response.status < 400) return response;
    const problem = await problemFrom(response);
    if (problem.code === "role_missing") this.#session.rolesChanged();
    throw problem;
  }

  /** A token for one service; who asks while one is being asked for gets the same. Throws `Problem`. */
  async token(service, fresh = false) {
    const session = this.#session.current;
    const known = this.#tokens.get(service);
    if (!fresh && known && known.session === session && known.ends - MARGIN_MS > Date.now()) return known.token;
    const asked = this.#asking.get(service);
    if (!fresh && asked && asked.session === session) return asked.token;
    const asking = { session, token: this.#exchanged(service) };
    this.#asking.set(service, asking);
    try {
      return await asking.token;
    } finally {
      if (this.#asking.get(service) === asking) this.#asking.delete(service);
    }
  }

  async #exchanged(service) {
    const token = await this.#session.exchange(service);
    const ends = Date.parse(token.expires_at);
    this.#tokens.set(service, { token: token.token, ends, session: this.#session.current });
    return token.token;
  }

  async #once(service, path, { json, headers, ...options }, fresh) {
    const token = await this.token(service, fresh);
    const body = json === undefined ? {} : { body: JSON.stringify(json), method: options.method ?? "POST" };
    const kind = json === undefined ? {} : { "Content-Type": "application/json" };
    const signals = [options.signal, this.#session.leaving].filter(Boolean);
    return this.#fetch(`/api/${service}${path}`, {
      ...options,
      ...body,
      signal: signals.length > 1 ? AbortSignal.any(signals) : signals[0],
      headers: { ...kind, ...headers, Authorization: `Bearer ${token}` },
    });
  }
}

/** An answer's JSON. Throws `Problem` where it is none. */
export async function parsed(response) {
  try {
    return await response.json();
  } catch {
    throw new Problem("The answer makes no sense. Is something between you and the server?", { code: "not_json" });
  }
}
