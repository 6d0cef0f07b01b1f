// One round on the live page: its phases as a timeline, its deadline, and what each hospital does in it.

import { duration, percent, privacyWords, short } from "../format.js";
import { html, nothing, repeat } from "../html.js";
import { hospitals, STAGES, tally } from "./hospitals.js";
import { clock, outcome, remaining, timeline } from "./timeline.js";

const TIME = new Intl.DateTimeFormat("en", { timeStyle: "medium" });
const WORDS = { done: "done", now: "now", next: "next", never: "did not happen" };

/** The panel of a round; `chosen` is null where the newest is followed, `choose(number | null)` changes it. */
export function roundPanel(state, number, chosen, choose, now) {
  const rows = hospitals(state, number);
  return html`<section class="panel round" aria-labelledby="round-title">
    <div class="head">
      <h2 id="round-title">${number === 0 ? "Start: the initial model" : `Round ${number}`}</h2>
      ${select(state, chosen, choose)}
    </div>
    <ol class="timeline">
      ${timeline(state, number).map(step)}
    </ol>
    <p class="deadline">${deadline(state, number, now)}</p>
    <h3>Hospitals${rows.length ? html` <span class="quiet">${number ? known(state, rows) : evaluatedTally(rows)}</span>` : nothing}</h3>
    ${
      rows.length
        ? html`<ul class="hospitals">
            ${repeat(
              rows,
              (row) => row.address,
              (row) => hospital(state, number, row),
            )}
          </ul>`
        : html`<p class="quiet">${nobody(state, number)}</p>`
    }
  </section>`;
}

function select({ view }, chosen, choose) {
  const numbers = [...new Set([view.round, ...view.rounds.map((round) => round.round)])].sort((a, b) => b - a);
  const change = (event) => choose(event.target.value === "" ? null : Number(event.target.value));
  return html`<div class="pick">
    <label for="pick">Show</label>
    <select id="pick" @change=${change}>
      <option value="" .selected=${chosen === null}>the newest round</option>
      ${numbers.map(
        (number) => html`<option value=${number} .selected=${chosen === number}>
          ${number === 0 ? "start (initial model)" : `round ${number}`}
        </option>`,
      )}
    </select>
  </div>`;
}

function step({ label, what, state, at, seconds }) {
  const begun = at === null || state === "next" || state === "never" ? "" : TIME.format(at);
  return html`<li class=${state} aria-current=${state === "now" ? "step" : nothing}>
    <span class="mark" aria-hidden="true"></span>
    <strong>${label}</strong> <span class="quiet">${WORDS[state]}</span>
    <span class="quiet what">${what}</span>
    <span class="quiet when">${begun}${begun && seconds !== null ? `, took ${duration(seconds)}` : nothing}</span>
  </li>`;
}

function deadline(state, number, now) {
  const left = number === state.view.round ? remaining(state.view, now) : null;
  if (left === null) {
    const how = outcome(state, number);
    if (how === "given up") return "This round was given up; nothing of it went into the model.";
    return number === 0 || how === "closed" || state.view.phase !== "opening"
      ? nothing
      : "Its deadline runs from its opening.";
  }
  if (left <= 0) {
    return state.view.spec.recording === "merkle"
      ? "The deadline has passed; what was collected is being committed."
      : "The deadline has passed; the last block's updates are still taken.";
  }
  return html`Hospitals have <span role="timer" aria-live="off" class="clock">${clock(left)}</span> left to submit;
    ${state.view.spec.quorum} of them are enough then.`;
}

function hospital(state, number, row) {
  const { address, site, stage, fraction, detail, confirmed, rejected } = row;
  const words = stage === null ? "online, nothing heard yet" : STAGES[stage].label;
  const isBusy = ["downloading", "training", "uploading", "evaluating"].includes(stage);
  const bad = stage === "refused" || stage === "failed";
  return html`<li data-hospital=${address}>
    <div class="who">
      <strong>${site ?? short(address)}</strong>
      ${site ? html`<code class="quiet" title=${address}>${short(address)}</code>` : nothing}
    </div>
    <div class="doing">
      <span class=${bad ? "wrong" : ""}>${words}${stage === "training" ? ` ${percent(fraction, 0)}` : nothing}</span>
      <progress aria-label="Progress of ${site ?? short(address)}" max="1" .value=${isBusy ? fraction : stage === null || bad ? 0 : 1}></progress>
      ${detail ? html`<span class="quiet detail">${detail}</span>` : nothing}
      ${row.privacy ? html`<span class="quiet privacy" title="What its updates of this job cost its lesions together, by its own account: differential privacy, the unit is a lesion with all its pictures">${privacyWords(row.privacy)}, a lesion</span>` : nothing}
    </div>
    ${number === 0 ? nothing : html`<div class="chain">${onLedger(state, number, row, confirmed, rejected)}</div>`}
  </li>`;
}

const known = (state, rows) => (state.read ? tally(rows) : "asking the ledger…");

function onLedger(state, number, row, confirmed, rejected) {
  const link = `/update?job=${state.view.id}&round=${number}&hospital=${row.address}`;
  if (!confirmed && !state.read) return html`<span class="busy quiet">asking the ledger</span>`;
  if (!confirmed) {
    return html`<span class="badge">${row.collected ? "collected, waits for the commitment" : row.uploaded ? "uploaded, not yet on the ledger" : "not on the ledger yet"}</span>
      ${rejected ? html`<span class="wrong">rejected: ${rejected}</span>` : nothing}`;
  }
  return html`<a class="badge ${rejected ? "bad" : "good"}" href=${link} data-confirmed>
      ${rejected ? "rejected" : "on the ledger"}
    </a>
    ${rejected ? html`<span class="wrong">${rejected}</span>` : nothing}
    <span class="quiet">
      block ${confirmed.block}, <code title=${confirmed.transaction}>${short(confirmed.transaction)}</code>, in
      <span class="latency">${confirmed.latency === null ? "…" : duration(confirmed.latency)}</span>
    </span>`;
}

const evaluatedTally = (rows) => `${rows.filter((row) => row.evaluated).length} of ${rows.length} evaluated it`;

const nobody = ({ view }, number) =>
  number === view.round && ["baseline", "opening"].includes(view.phase)
    ? "No hospital is online. Their nodes connect by themselves once they run."
    : "Nothing was heard of any hospital in this round.";
