// Ledger: every event, filtered by what the page's address says, page after page, and as a file.

import { download } from "../download.js";
import { brief, count } from "../format.js";
import { html, nothing, render } from "../html.js";
import { eventList } from "../ledger/event-list.js";
import { allEvents, toCsv, toJson } from "../ledger/export.js";
import { filterForm } from "../ledger/filter-form.js";
import { chips, eventsQuery, filterProblems, filtersFrom, NONE, pageQuery } from "../ledger/filters.js";
import { jobList } from "../ledger/job-list.js";
import { api, page } from "../page.js";
import { sentence } from "../problem.js";
import { siteName, sitesOf } from "../sites.js";

const LIMIT = 50;
const PATIENCE_MS = 1_500; // how long the page waits for names, so that nothing moves when they come

page({ what: "the ledger", start });

function start(view) {
  const state = {
    filters: filtersFrom(location.search),
    problems: {},
    events: null,
    before: null,
    busy: true,
    problem: "",
    exporting: "",
    exported: "",
    jobs: null,
    nodes: [],
    patient: true,
  };
  let asked = new AbortController();
  let saving = new AbortController();
  let ended = false;

  const show = (change = {}) => {
    if (ended) return;
    Object.assign(state, change);
    render(template(state, acts), view);
  };

  const load = async ({ more = false } = {}) => {
    asked.abort();
    asked = new AbortController();
    const { signal } = asked;
    const problems = filterProblems(state.filters);
    if (Object.keys(problems).length) return show({ problems, busy: false, events: [], before: null, problem: "" });
    show({ problems, busy: true, problem: "" });
    try {
      const query = eventsQuery(state.filters, { before: more ? state.before : undefined, limit: LIMIT });
      const found = await api.json("chain", `/v1/events${query}`, { signal });
      const events = more ? [...state.events, ...found.events] : found.events;
      show({ events, before: found.before, busy: false });
    } catch (error) {
      if (!signal.aborted) show({ problem: sentence(error), busy: false });
    }
  };

  const acts = {
    load,
    more: () => load({ more: true }),
    filter(filters) {
      saving.abort();
      history.pushState(null, "", `/ledger${pageQuery(filters)}`);
      show({ filters, exported: "" });
      load();
    },
    async save(kind) {
      saving = new AbortController();
      const { signal } = saving;
      show({ exporting: "Fetching events…", exported: "" });
      try {
        const progress = (number) => show({ exporting: `${count(number)} events fetched…` });
        const events = await allEvents(api, state.filters, { progress, signal });
        if (kind === "json") download(toJson(events), "ledger.json", "application/json");
        else download(toCsv(events), "ledger.csv", "text/csv;charset=utf-8");
        show({ exporting: "", exported: `${count(events.length)} events saved as ledger.${kind}.` });
      } catch (error) {
        show({ exporting: "", exported: signal.aborted ? "" : sentence(error) });
      }
    },
    stopSaving: () => saving.abort(),
  };

  const back = () => {
    show({ filters: filtersFrom(location.search) });
    load();
  };
  addEventListener("popstate", back);
  show();
  load();
  const impatience = setTimeout(() => show({ patient: false }), PATIENCE_MS);
  names().then(show);
  return () => {
    ended = true;
    clearTimeout(impatience);
    asked.abort();
    saving.abort();
    removeEventListener("popstate", back);
  };
}

/** Names of jobs and hospitals; without them, ids and addresses are shown. */
async function names() {
  const [jobs, nodes] = await Promise.all([
    api.json("aggregator", "/v1/jobs").catch(() => []),
    api.json("aggregator", "/v1/nodes").catch(() => []),
  ]);
  return { jobs, nodes };
}

function template(state, acts) {
  const { filters, events, before, busy, problem, jobs, nodes } = state;
  if (jobs === null && state.patient) return html`<p class="busy waiting">Asking the ledger…</p>`;
  const sites = sitesOf(nodes);
  const who = (address) => siteName(sites, address);
  const jobName = (id) => jobs?.find((job) => job.id === id)?.spec.name ?? brief(id);
  const active = chips(filters, { job: jobName, account: who });
  return html`${jobList(jobs)}
    <section class="panel" aria-labelledby="events">
      <div class="head">
        <h2 id="events">Events</h2>
        ${exportButtons(state, acts)}
      </div>
      ${filterForm(state, acts)}
      ${
        active.length
          ? html`<ul class="chips" aria-label="Active filters">
              ${active.map(
                ({ label, rest }) => html`<li>
                  <button class="chip" aria-label="Remove the filter ${label}" @click=${() => acts.filter(rest)}>
                    ${label} <span aria-hidden="true">✕</span>
                  </button>
                </li>`,
              )}
              <li><button class="small" @click=${() => acts.filter(NONE)}>Clear all</button></li>
            </ul>`
          : nothing
      }
      ${problem ? html`<p class="problem">${problem} <button class="small" @click=${acts.load}>Try again</button></p>` : nothing}
      <div class="event-room" aria-busy=${busy ? "true" : "false"}>
        ${events === null ? html`<p class="busy">Asking the ledger…</p>` : Object.keys(state.problems).length ? nothing : eventList(events, { who, jobName, filtered: active.length > 0 })}
      </div>
      <div class="actions">
        ${before ? html`<button ?disabled=${busy} @click=${acts.more}>Load more</button>` : nothing}
        <span class="quiet" role="status">${tally(events, before, busy)}</span>
      </div>
    </section>`;
}

function tally(events, before, busy) {
  if (!events) return "";
  if (busy) return "Asking the ledger…";
  if (events.length === 0) return "";
  return before ? `The newest ${count(events.length)} are shown.` : `All ${count(events.length)} are shown.`;
}

function exportButtons({ exporting, exported, problems, events }, acts) {
  const off = Boolean(exporting) || Object.keys(problems).length > 0 || !events?.length;
  return html`<div class="actions">
    <span class="quiet small-text ${exporting ? "busy" : ""}" role="status">${exporting || exported}</span>
    ${exporting ? html`<button class="small" @click=${acts.stopSaving}>Stop</button>` : nothing}
    <button class="small" ?disabled=${off} @click=${() => acts.save("json")}>Save as JSON</button>
    <button class="small" ?disabled=${off} @click=${() => acts.save("csv")}>Save as CSV</button>
  </div>`;
}
