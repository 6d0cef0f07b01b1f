// Update: one hospital's contribution to one round, as signed and as recorded, and what became of it.

import { html, nothing, render } from "../html.js";
import { measurements, recording, statement } from "../ledger/update-parts.js";
import { inclusion, updateProblem } from "../ledger/update-words.js";
import { lineageHref } from "../ledger/words.js";
import { api, page } from "../page.js";
import { sentence } from "../problem.js";
import { hospital, siteName, sites } from "../sites.js";

page({ what: "an update", start });

function start(view) {
  const given = new URLSearchParams(location.search);
  const asked = { job: given.get("job") ?? "", round: given.get("round") ?? "", hospital: given.get("hospital") ?? "" };
  const wrong = updateProblem(asked);
  if (wrong) {
    render(nowhere(wrong), view);
    return undefined;
  }
  let ended = false;
  const load = async () => {
    render(html`<p class="busy waiting">Asking the ledger…</p>`, view);
    try {
      const found = await everything(asked);
      if (!ended) render(template(asked, found), view);
    } catch (error) {
      if (ended) return;
      const unknown = error.code === "round_unknown" || error.code === "job_unknown";
      render(unknown ? nowhere("The ledger knows no such round of this job.", asked) : trouble(error, load), view);
    }
  };
  load();
  return () => {
    ended = true;
  };
}

async function everything({ job, round, hospital: address }) {
  const events = `/v1/events?name=UpdateRecorded&job=${job}&round=${round}&account=${address.toLowerCase()}`;
  const [recorded, names, known, page_, transactions] = await Promise.all([
    api.json("chain", `/v1/jobs/${job}/rounds/${round}`),
    sites(api),
    api.json("aggregator", `/v1/jobs/${job}`).catch(() => null),
    api.json("chain", events).catch(() => null),
    api.json("chain", `/v1/transactions?job=${job}&limit=1000`).catch(() => []),
  ]);
  const found = recorded.updates.find(({ update }) => update.hospital.toLowerCase() === address.toLowerCase());
  const relayed = transactions.find((each) => each.transaction === found?.transaction);
  return { recorded, names, known, found, at: page_?.events[0]?.at ?? null, relayed };
}

function template(asked, { recorded, names, known, found, at, relayed }) {
  if (!found) {
    const who = siteName(names, asked.hospital);
    return nowhere(`${who} submitted no update in round ${asked.round} of this job.`, asked);
  }
  const { update } = found;
  const outcome = inclusion(found, recorded);
  return html`<div class="head">
      <h2 class="whole">${hospital(names, update.hospital)}<span class="quiet">, round ${update.round} of ${known?.spec.name ?? `job ${asked.job.slice(0, 8)}`}</span></h2>
      <div class="actions">
        <a class="button" href=${lineageHref(asked.job)}>Lineage</a>
        <a class="button" href="/job?id=${asked.job}">Job</a>
        <a class="button" href="/ledger?job=${asked.job}&round=${update.round}">Events of the round</a>
      </div>
    </div>
    <section class="panel" aria-labelledby="outcome">
      <h2 id="outcome">What became of it</h2>
      <p><span class="badge ${outcome.tone}">${outcome.word}</span> ${outcome.sentence}</p>
      ${outcome.digest ? html`<p class="quiet">That model: <a href=${lineageHref(asked.job)}><code class="whole">${outcome.digest}</code></a></p>` : nothing}
    </section>
    ${statement(found)} ${recording(found, { at, relayed })} ${measurements(found.metrics)}`;
}

const nowhere = (text, asked) =>
  html`<section class="panel empty">
    <h2>${text}</h2>
    <p>Updates are reached from a job's lineage or from the ledger.</p>
    <div class="actions centred">
      ${asked ? html`<a class="button" href=${lineageHref(asked.job)}>Lineage of the job</a>` : nothing}
      <a class="button primary" href="/ledger">See the ledger</a>
    </div>
  </section>`;

const trouble = (error, again) =>
  html`<p class="problem">${sentence(error)} <button class="small" @click=${again}>Try again</button></p>`;
