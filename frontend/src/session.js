// Who is signed in: a session whose token lies in a cookie that no script can read, and what the ledger lets them do.

import { parsed } from "./api.js";
import { Problem, problemFrom } from "./problem.js";

/** The session of this browser. Dispatches `change` whenever `current` does (signed in, signed out, other roles). */
export class Session extends EventTarget {
  /** `{address, roles, expires_at, csrf_token}`, null for nobody, undefined before it was looked for. */
  current = undefined;
  /** Whether there is no session any more though nobody signed out: it timed out, or the server ended it. */
  ended = false;
  #fetch;
  #leaving = new AbortController();

  constructor(fetch = globalThis.fetch.bind(globalThis)) {
    super();
    this.#fetch = fetch;
  }

  /** Whether somebody is signed in who holds one of `roles` (any role where none is named). */
  holds(...roles) {
    const held = this.current?.roles ?? [];
    return roles.length === 0 ? held.length > 0 : roles.some((role) => held.includes(role));
  }

  /** Aborted as soon as somebody signs out: what was asked for on their behalf would only be refused. */
  get leaving() {
    return this.#leaving.signal;
  }

  /** Look again: roles may have been granted or taken. */
  async refresh() {
    const response = await this.#fetch("/api/auth/v1/browser-session");
    if (response.status === 401) return this.#become(null);
    if (!response.ok) throw await problemFrom(response);
    return this.#become(await parsed(response));
  }

  /** Sign in with a wallet's account (EIP-4361). Throws `Problem`. */
  async signIn(wallet, address) {
    const { message } = await this.#post("/v1/challenges", { address });
    const signature = await wallet.signMessage(message, address);
    return this.#become(await this.#post("/v1/browser-sessions", { message, signature }));
  }

  /** End the session. Throws where the server could not be told; this page forgets who was signed in nevertheless. */
  async signOut() {
    const headers = { "X-CSRF-Token": this.current.csrf_token };
    this.#leaving.abort(nobody());
    try {
      const response = await this.#fetch("/api/auth/v1/browser-session", { method: "DELETE", headers });
      if (!response.ok && response.status !== 401) throw await problemFrom(response);
    } finally {
      this.#become(null, true);
    }
  }

  /** An access token for one service. Throws `Problem`; a session that has ended is noticed here. */
  async exchange(audience) {
    const asking = this.current;
    const { leaving } = this;
    if (!asking || leaving.aborted) throw nobody();
    try {
      const headers = { "X-CSRF-Token": asking.csrf_token };
      const token = await this.#post("/v1/tokens", { audience }, headers, leaving);
      if (this.current?.csrf_token !== asking.csrf_token) throw nobody(); // who asked has gone meanwhile
      if (String(token.roles) !== String(this.current.roles)) this.#become({ ...this.current, roles: token.roles });
      return token;
    } catch (error) {
      // 401 whatever its code: a browser drops the cookie of a session that has ended, and then asks as nobody.
      if (error.status === 401 && !leaving.aborted && this.current?.csrf_token === asking.csrf_token)
        this.#become(null);
      throw error;
    }
  }

  /** A service refused a role that this session seemed to have. */
  rolesChanged() {
    this.refresh().catch(() => {});
  }

  #become(session, left = false) {
    const before = JSON.stringify(this.current);
    this.ended = session === null && !left && (this.ended || Boolean(this.current));
    this.current = session;
    if (session !== null && this.leaving.aborted) this.#leaving = new AbortController();
    if (JSON.stringify(session) !== before) this.dispatchEvent(new Event("change"));
    return session;
  }

  async #post(path, json, headers = {}, signal = null) {
    const response = await this.#fetch(`/api/auth${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers },
      body: JSON.stringify(json),
      signal,
    });
    if (!response.ok) throw await problemFrom(response);
    return parsed(response);
  }
}

const nobody = () => new Problem("Please sign in.", { status: 401, code: "session_unknown" });
