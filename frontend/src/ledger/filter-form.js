// The form that says which events are wanted.

import { brief, short } from "../format.js";
import { html, nothing } from "../html.js";
import { filtersFrom, NONE } from "./filters.js";
import { KINDS } from "./words.js";

/** The form. Without scripts it would still be a query of the page's address. */
export function filterForm({ filters, problems, jobs, nodes }, { filter }) {
  const submit = (event) => {
    event.preventDefault();
    filter(filtersFrom(new FormData(event.currentTarget)));
  };
  const known = jobs?.some((job) => job.id === filters.job);
  return html`<details class="filters" ?open=${Object.keys(problems).length > 0}>
    <summary>Filter</summary>
    <form class="fields" action="/ledger" novalidate @submit=${submit}>
      <label>
        Job
        <select name="job" .value=${filters.job}>
          <option value="" ?selected=${!filters.job}>any</option>
          ${filters.job && !known ? html`<option value=${filters.job} selected>${brief(filters.job)}</option>` : nothing}
          ${(jobs ?? []).map((job) => html`<option value=${job.id} ?selected=${job.id === filters.job}>${job.spec.name} (${brief(job.id)})</option>`)}
        </select>
        ${complaint(problems.job)}
      </label>
      ${field("round", "Round", filters, problems, { inputmode: "numeric" })}
      ${field("account", "Hospital or account", filters, problems, { placeholder: "0x…", list: "accounts" })}
      <datalist id="accounts">
        ${nodes.map((node) => html`<option value=${node.address}>${node.registration.site} (${short(node.address)})</option>`)}
      </datalist>
      ${field("from", "From block", filters, problems, { inputmode: "numeric" })}
      ${field("to", "To block", filters, problems, { inputmode: "numeric" })}
      <fieldset class="wide kinds">
        <legend>Kinds of event</legend>
        ${KINDS.map(
          ([name, label]) => html`<label class="check">
            <input type="checkbox" name="kind" value=${name} .checked=${filters.kinds.includes(name)} /> ${label}
          </label>`,
        )}
      </fieldset>
      <div class="actions">
        <button class="primary">Show these</button>
        <button type="button" @click=${() => filter(NONE)}>Clear</button>
      </div>
    </form>
  </details>`;
}

const field = (name, label, filters, problems, { inputmode = "text", placeholder = "", list } = {}) =>
  html`<label>
    ${label}
    <input name=${name} .value=${filters[name]} inputmode=${inputmode} placeholder=${placeholder} list=${list ?? nothing}
      autocomplete="off" spellcheck="false" aria-invalid=${problems[name] ? "true" : nothing} />
    ${complaint(problems[name])}
  </label>`;

const complaint = (text) => (text ? html`<small class="wrong" role="alert">${text}</small>` : nothing);
