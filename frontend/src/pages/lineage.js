// Lineage: what a job's model was made from, as a graph and as a list, and a verification that recomputes it.

import { download } from "../download.js";
import { html, nothing, render } from "../html.js";
import { drawing } from "../ledger/drawing.js";
import { facts } from "../ledger/facts.js";
import { graphOf, grouped } from "../ledger/graph.js";
import { directionFor, layout, limitFor } from "../ledger/layout.js";
import { lineageList } from "../ledger/lineage-list.js";
import { Verifying, verificationPanel } from "../ledger/verifying.js";
import { api, page, session } from "../page.js";
import { sentence } from "../problem.js";
import { siteName, sites } from "../sites.js";

const PANEL = 42; // what a panel takes of the width: padding and border, pixels
const JOB = /^[0-9a-f]{64}$/;

page({ what: "a job's lineage", start });

function start(view) {
  const id = new URLSearchParams(location.search).get("job") ?? "";
  if (!JOB.test(id)) {
    render(nowhere("This address names no job."), view);
    return undefined;
  }
  const state = {
    id,
    job: undefined,
    known: null,
    model: null,
    origin: null,
    names: new Map(),
    open: new Set(),
    width: view.clientWidth - PANEL,
  };
  const verifying = new Verifying(api, id);
  let ended = false;

  const show = (change = {}) => {
    if (ended) return;
    Object.assign(state, change);
    render(template(state, verifying, acts), view);
    measure();
  };
  const sized = new ResizeObserver(([{ contentRect }]) => {
    const width = Math.floor(contentRect.width);
    if (width !== state.width) show({ width });
  });
  let measured;
  const measure = () => {
    const place = view.querySelector(".graph");
    if (place === measured) return;
    if (measured) sized.unobserve(measured);
    if (place) sized.observe(place);
    measured = place;
  };
  const load = async () => {
    show({ problem: "" });
    try {
      show(await everything(id));
    } catch (error) {
      if (error.code === "job_unknown") show({ job: null });
      else show({ problem: sentence(error) });
    }
    verifying.load();
  };
  const acts = {
    load,
    toggle(round) {
      const open = new Set(state.open);
      if (!open.delete(round)) open.add(round);
      show({ open });
    },
    openAll: (rounds) => show({ open: new Set(rounds) }),
    closeAll: () => show({ open: new Set() }),
    save: () => {
      const { job, known, model } = state;
      const name = known?.spec.name ?? null;
      download(
        `${JSON.stringify({ name, ledger: job, model }, null, 2)}\n`,
        `lineage-${id.slice(0, 8)}.json`,
        "application/json",
      );
    },
  };
  const update = () => show();
  verifying.addEventListener("change", update);
  session.addEventListener("change", update);
  load();
  return () => {
    ended = true;
    verifying.stop();
    session.removeEventListener("change", update);
    sized.disconnect();
  };
}

async function everything(id) {
  const [job, known, models, names, published] = await Promise.all([
    api.json("chain", `/v1/jobs/${id}`),
    api.json("aggregator", `/v1/jobs/${id}`).catch(() => null), // a job's name; the ledger knows the rest
    api.json("model", "/v1/models").catch(() => []),
    sites(api),
    api.json("chain", `/v1/events?name=ModelPublished&job=${id}&limit=1`).catch(() => null),
  ]);
  const model = models.find((version) => version.job === id) ?? null;
  const initial = job.rounds[0]?.base;
  const origin =
    model?.initial_origin ??
    (initial ? await api.json("model", `/v1/artifacts/${initial}/info`).catch(() => null) : null)?.origin ??
    null;
  return { job, known, model, names, origin, publication: published?.events[0] ?? null };
}

function template(state, verifying, acts) {
  const { id, job, known, problem } = state;
  if (problem)
    return html`<p class="problem">${problem} <button class="small" @click=${acts.load}>Try again</button></p>`;
  if (job === undefined) return html`<p class="busy waiting">Asking the ledger…</p>`;
  if (job === null)
    return nowhere("Nothing of this job is on the ledger. Perhaps its first round was not opened yet.", id);
  return html`<div class="head">
      <h2 class="whole">${known?.spec.name ?? `Job ${id.slice(0, 8)}`}</h2>
      <div class="actions">
        <a class="button" href="/job?id=${id}">Job</a>
        <a class="button" href="/ledger?job=${id}">Events</a>
        <button @click=${acts.save}>Save as JSON</button>
      </div>
    </div>
    ${facts(state)} ${picture(state, acts)}
    ${verificationPanel(verifying, { job, session, who: (address) => siteName(state.names, address) })}`;
}

function picture({ id, job, names, open, width }, { toggle, openAll, closeAll }) {
  const who = (address) => siteName(names, address);
  const direction = directionFor(width || 1000);
  const graph = graphOf(job, { open, limit: limitFor(direction, width || 1000) });
  const groups = grouped(graph);
  return html`<section class="panel" aria-labelledby="graph">
    <div class="head">
      <h2 id="graph">From weights to model</h2>
      ${
        groups.length
          ? html`<div class="actions">
              <button class="small" @click=${() => openAll(groups)}>Open all updates</button>
              <button class="small" ?disabled=${open.size === 0} @click=${closeAll}>Close all</button>
            </div>`
          : nothing
      }
    </div>
    <div class="graph" role="region" aria-label="Graph of the lineage" tabindex="0">
      ${width ? drawing(layout(graph, { width, direction }), { job: id, who, toggle }) : nothing}
    </div>
    <ul class="legend" aria-label="What the graph shows">
      <li><span class="swatch initial"></span> initial weights</li>
      <li><span class="swatch update"></span> a hospital's update</li>
      <li><span class="swatch rejected"></span> left out</li>
      <li><span class="swatch model"></span> a round's model</li>
      <li><span class="swatch published"></span> published</li>
    </ul>
    <details>
      <summary>The same as a list</summary>
      ${lineageList(job, { id, who })}
    </details>
  </section>`;
}

const nowhere = (text, id) =>
  html`<section class="panel empty">
    <h2>${text}</h2>
    ${id ? html`<p><code class="whole">${id}</code></p>` : nothing}
    <a class="button primary" href="/ledger">See all jobs</a>
  </section>`;
