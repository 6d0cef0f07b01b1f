// Jobs, each with the way to its lineage.

import { brief, moment } from "../format.js";
import { html, nothing } from "../html.js";
import { PHASES } from "../jobs.js";
import { lineageHref } from "./words.js";

const FIRST = 5;

/** The section of jobs, the newest first; null while they are asked for. */
export function jobList(jobs) {
  return html`<section class="panel job-list" aria-labelledby="lineages">
    <h2 id="lineages">Where models came from</h2>
    ${jobs === null ? html`<p class="busy">Asking for jobs…</p>` : nothing}
    ${jobs?.length === 0 ? html`<p class="quiet">No job was started yet, so there is no model to trace back.</p>` : nothing}
    ${jobs?.length ? html`<ul class="rows">${jobs.slice(0, FIRST).map(row)}</ul>` : nothing}
    ${
      jobs?.length > FIRST
        ? html`<details>
            <summary>Older jobs (${jobs.length - FIRST})</summary>
            <ul class="rows">${jobs.slice(FIRST).map(row)}</ul>
          </details>`
        : nothing
    }
  </section>`;
}

const row = ({ id, spec, phase, created_at }) =>
  html`<li>
    <a class="grow whole" href=${lineageHref(id)}><strong>${spec.name}</strong> <span class="hidden-visually">lineage of ${brief(id)}</span></a>
    <span class="badge ${phase === "finished" ? "good" : ""}">${PHASES[phase].label}</span>
    <span class="quiet small-text">${moment(created_at)}</span>
  </li>`;
