// Who granted and took which role, as the ledger recorded it.

import { copyable } from "../copyable.js";
import { count, moment, short } from "../format.js";
import { html, nothing } from "../html.js";
import { hospital } from "../sites.js";
import { article, roleNamed } from "./roles.js";

const FIRST = 15;

/** The section of role records, the newest first; all of them where `whole`. */
export function history({ records, sites }, { whole, showWhole }) {
  const shown = whole ? records : records.slice(0, FIRST);
  return html`<section class="panel" aria-labelledby="history">
    <h2 id="history">Who decided what</h2>
    ${
      records.length === 0
        ? html`<p class="quiet">No role was granted yet.</p>`
        : html`<ol class="rows records">
            ${shown.map((record) => row(record, sites))}
          </ol>`
    }
    ${
      records.length > shown.length
        ? html`<button @click=${showWhole}>Show all ${count(records.length)}</button>`
        : nothing
    }
  </section>`;
}

function row({ role, account, granted, admin, block, transaction, at }, sites) {
  const { one } = roleNamed(role);
  return html`<li>
    <span class="badge ${granted ? "good" : "bad"}">${granted ? "granted" : "revoked"}</span>
    <span class="grow">
      <code title=${admin}>${short(admin)}</code> ${granted ? "made" : "took from"} ${hospital(sites, account)}
      ${granted ? article(one) : `the role ${one}`}
    </span>
    <span class="quiet small-text">
      ${at ? html`${moment(at)} · ` : nothing}block ${count(block)} · ${copyable(transaction, "the transaction's hash")}
    </span>
  </li>`;
}
