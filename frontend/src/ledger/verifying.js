// Having a job recomputed: asked for, followed while it runs, and what it and earlier ones came to.

import { copyable } from "../copyable.js";
import { brief, moment, percent, short } from "../format.js";
import { html, nothing } from "../html.js";
import { sentence } from "../problem.js";
import { ENDED, findingsByRound, verdictNote, verdictSentence } from "./verdict.js";

const POLL_MS = 500;
const TROUBLE_MS = 3_000;

/** A job's verifications, the newest first. Dispatches `change`. Follows one that is not over until it is. */
export class Verifying extends EventTarget {
  list = null;
  problem = "";
  asking = false;
  #api;
  #job;
  #timer;
  #stopped = false;

  constructor(api, job) {
    super();
    this.#api = api;
    this.#job = job;
  }

  /** The one that is not over, if there is one. */
  get running() {
    return this.list?.find((each) => !ENDED.has(each.state));
  }

  /** Ask for all, and follow the one under way. */
  async load() {
    try {
      this.#become({ list: await this.#api.json("aggregator", `/v1/jobs/${this.#job}/verifications`), problem: "" });
    } catch (error) {
      // A job that the aggregator does not know has none; whatever else is wrong is said when one is asked for.
      this.#become({ list: [], problem: error.code === "job_not_found" ? "" : sentence(error) });
    }
    this.#follow();
  }

  /** Have the job recomputed. */
  async ask() {
    this.#become({ asking: true, problem: "" });
    try {
      const asked = await this.#api.json("aggregator", `/v1/jobs/${this.#job}/verifications`, { method: "POST" });
      this.#put(asked);
    } catch (error) {
      this.#become({ problem: sentence(error) });
    }
    this.#become({ asking: false });
    this.#follow();
  }

  /** Follow no more. */
  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #follow(wait = POLL_MS) {
    clearTimeout(this.#timer);
    const { running } = this;
    if (!running || this.#stopped) return;
    this.#timer = setTimeout(async () => {
      try {
        this.#put(await this.#api.json("aggregator", `/v1/verifications/${running.id}`));
        this.#become({ problem: "" });
        this.#follow();
      } catch (error) {
        this.#become({ problem: sentence(error) });
        this.#follow(TROUBLE_MS);
      }
    }, wait);
  }

  #put(one) {
    const others = (this.list ?? []).filter((each) => each.id !== one.id);
    this.#become({ list: [one, ...others] });
  }

  #become(change) {
    if (this.#stopped) return;
    Object.assign(this, change);
    this.dispatchEvent(new Event("change"));
  }
}

/** The panel: the way to ask (admin, auditor), progress, the newest verdict, earlier ones, and how to trust nobody. */
export function verificationPanel(verifying, { job, session, who }) {
  const { list, running, problem, asking } = verifying;
  const may = session.holds("admin", "auditor");
  const over = (list ?? []).filter((each) => ENDED.has(each.state));
  const [newest, ...earlier] = over;
  return html`<section class="panel verification" aria-labelledby="verification">
    <div class="head">
      <h2 id="verification">Verification</h2>
      ${
        may
          ? html`<button class="primary" ?disabled=${asking || Boolean(running)} @click=${() => verifying.ask()}>
              ${over.length ? "Verify again" : "Verify"}
            </button>`
          : nothing
      }
    </div>
    <p class="quiet">
      Every signature is checked, every file hashed, and each round's model folded again from its updates: it must be the
      same to the last bit.${may ? "" : " Administrators and auditors can have it done."}
    </p>
    <div role="status" class="stack">
      ${problem ? html`<p class="problem">${problem}</p>` : nothing} ${running ? progress(running) : nothing}
      ${newest && !running ? verdict(newest, who) : nothing}
      ${list?.length === 0 && !problem ? html`<p class="quiet">It was not verified yet.</p>` : nothing}
      ${list === null ? html`<p class="busy">Asking for verifications…</p>` : nothing}
    </div>
    ${
      (running ? over : earlier).length
        ? html`<details>
            <summary>Earlier verifications (${(running ? over : earlier).length})</summary>
            <ul class="rows">${(running ? over : earlier).map((each) => earlierRow(each))}</ul>
          </details>`
        : nothing
    }
    <div class="aside">
      <h3>Without trusting this server</h3>
      <p>
        The same can be done on your own machine. It asks the ledger for the events, fetches the files by their hashes, and
        computes everything itself: ${copyable(`concilia verify ${job.job}`, "the command", { whole: true })}
      </p>
    </div>
  </section>`;
}

function progress({ fraction, step, state }) {
  return html`<div class="verification-progress">
    <label for="verification-fraction" class="busy">${state === "queued" ? "Waiting for its turn" : (step || "Beginning").replace(/…$/, "")}…</label>
    <progress id="verification-fraction" max="1" value=${fraction}></progress>
    <span class="quiet">${percent(fraction, 0)}</span>
  </div>`;
}

function verdict(verification, who) {
  const good = verification.verdict?.ok;
  return html`<div class=${good ? "success" : "problem"}>
      <p><strong>${verdictSentence(verification)}</strong></p>
      <p>${verdictNote(verification.verdict)} ${moment(verification.finished_at)}, asked by ${short(verification.asked_by)}</p>
    </div>
    ${findingsByRound(verification.verdict?.findings ?? [], who).map(
      ({ round, lines }) => html`<h3>${round === 0 ? "Before the first round" : `Round ${round}`}</h3>
        <ul class="findings">
          ${lines.map(({ line, digest }) => html`<li class="whole">${line} ${digest ? html`<code title=${digest}>${brief(digest)}</code>` : nothing}</li>`)}
        </ul>`,
    )}`;
}

const earlierRow = (verification) =>
  html`<li>
    <span class="badge ${verification.verdict?.ok ? "good" : "bad"}">${verification.verdict?.ok ? "agrees" : verification.state === "failed" ? "not finished" : "does not agree"}</span>
    <span class="grow whole">${verdictSentence(verification)}</span>
    <span class="quiet small-text">${moment(verification.finished_at)}</span>
  </li>`;
