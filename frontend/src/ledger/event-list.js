// Events as sentences, the newest first, each with its block, its transaction and its raw arguments.

import { copyable } from "../copyable.js";
import { count, moment } from "../format.js";
import { html, nothing, repeat } from "../html.js";
import { kind, more, sentenceOf } from "./words.js";

const TONES = {
  UpdateRejected: "bad",
  RoundAborted: "warn",
  RoundClosed: "live",
  ModelPublished: "good",
  RoleRevoked: "warn",
  Paused: "warn",
};

/** The list. `who` names accounts, `jobName` jobs. */
export function eventList(events, { who, jobName, filtered }) {
  if (events.length === 0) {
    return html`<p class="quiet">
      ${filtered ? "Nothing on the ledger fits these filters. Take one away." : "Nothing is on the ledger yet. The first role or round will appear here."}
    </p>`;
  }
  return html`<ol class="events">
    ${repeat(
      events,
      (event) => `${event.block}-${event.log_index}`,
      (event) => row(event, who, jobName),
    )}
  </ol>`;
}

function row(event, who, jobName) {
  const further = more(event);
  return html`<li>
    <span class="badge ${TONES[event.name] ?? ""}">${kind(event.name)}</span>
    <div class="what">
      <p class="whole">${sentenceOf(event, who)}${event.job ? html` <span class="quiet">· ${jobName(event.job)}</span>` : nothing}</p>
      <p class="quiet small-text">
        ${event.at ? html`<time datetime=${event.at}>${moment(event.at)}</time> · ` : nothing}block ${count(event.block)} ·
        ${copyable(event.transaction, "the transaction's hash")}
      </p>
    </div>
    ${further ? html`<a class="further" href=${further.href}>${further.label}<span class="hidden-visually"> of event ${event.block}-${event.log_index}</span></a>` : nothing}
    <details class="raw">
      <summary>As recorded<span class="hidden-visually"> in event ${event.block}-${event.log_index}</span></summary>
      <dl>
        ${Object.entries({
          event: event.name,
          ...event.arguments,
          transaction: event.transaction,
          log: `block ${event.block}, index ${event.log_index}`,
        }).map(([name, value]) => html`<div><dt>${name}</dt><dd><code class="whole">${value}</code></dd></div>`)}
      </dl>
    </details>
  </li>`;
}
