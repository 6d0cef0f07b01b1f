// The lineage as an ordered list: what the graph shows, in words.

import { brief } from "../format.js";
import { html, nothing } from "../html.js";
import { reason } from "../reasons.js";
import { images, updateHref, updates } from "./words.js";

/** The list of a job as the ledger has it. */
export function lineageList(job, { id, who }) {
  return html`<ol class="lineage-list">
    <li>Initial weights <code>${brief(job.rounds[0]?.base ?? job.head)}</code></li>
    ${job.rounds.map(
      (round) => html`<li>
        Round ${round.round}, from <code>${brief(round.base)}</code>: ${ending(round)}
        ${
          round.updates.length
            ? html`<ul>
                ${round.updates.map(
                  ({ update, reason: left }) => html`<li>
                    <a href=${updateHref(id, round.round, update.hospital)}>${who(update.hospital)}, round ${round.round}</a>: ${images(update.samples)}${left === null ? nothing : html`, <strong>left out</strong>: ${reason(left)}`}
                  </li>`,
                )}
              </ul>`
            : nothing
        }
      </li>`,
    )}
    ${job.published ? html`<li>Published model <code>${brief(job.head)}</code></li>` : nothing}
  </ol>`;
}

function ending(round) {
  if (round.status === "open") return `under way, ${updates(round.updates.length)} so far`;
  if (round.status === "aborted") return "given up; the model stayed as it was";
  const counted = round.updates.filter((update) => update.reason === null).length;
  return html`${updates(counted)} folded into <code>${brief(round.global_digest)}</code>`;
}
