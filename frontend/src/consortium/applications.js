// Who asks for a role, and what an administrator can do about it.

import { copyable } from "../copyable.js";
import { moment } from "../format.js";
import { html, nothing } from "../html.js";
import { roleNamed } from "./roles.js";

/** The section of pending applications. */
export function applications({ applications: pending }, { change, dismiss }) {
  return html`<section class="panel" aria-labelledby="applications">
    <h2 id="applications">Applications ${pending.length ? html`<span class="badge warn">${pending.length}</span>` : nothing}</h2>
    ${
      pending.length === 0
        ? html`<p class="quiet">Nobody waits for a role. Whoever signs in without one can ask for it.</p>`
        : html`<ul class="rows">
            ${pending.map((application) => row(application, change, dismiss))}
          </ul>`
    }
  </section>`;
}

function row({ address, role, name, note, filed_at }, change, dismiss) {
  const grant = () => change({ role, account: address, granted: true, name });
  return html`<li class="person">
    <div class="grow">
      <strong class="whole">${name}</strong> asks to be <span class="badge">${roleNamed(role).one}</span>
      ${note ? html`<p class="whole">“${note}”</p>` : nothing}
      <p class="quiet small-text">${copyable(address, `the address of ${name}`)} · ${moment(filed_at)}</p>
    </div>
    <div class="actions">
      <button class="primary small" aria-label="Grant ${roleNamed(role).one} to ${name}" @click=${grant}>Grant</button>
      <button class="small" aria-label="Dismiss the application of ${name}" @click=${() => dismiss({ address, name })}>
        Dismiss
      </button>
    </div>
  </li>`;
}
