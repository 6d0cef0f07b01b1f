// Home: the state of the consortium in one look, and the next step for whoever looks.

import { signIn } from "../account.js";
import { heldOutOf } from "../classes.js";
import { architecture, brief, count, moment, percent } from "../format.js";
import { html, nothing, render } from "../html.js";
import { ENDED, PHASES } from "../jobs.js";
import { figureOf, foundOf, shownOf } from "../judging.js";
import { api, page, session } from "../page.js";
import { sentence } from "../problem.js";
import { isOnline } from "../sites.js";

const REFRESH_MS = 10_000;

page({ what: "the consortium", open: true, start });

function start(view) {
  if (!session.holds()) {
    render(stranger(), view);
    return undefined;
  }
  let timer;
  let over = false;
  const load = async () => {
    try {
      const [jobs, nodes, models, hospitals] = await Promise.all([
        api.json("aggregator", "/v1/jobs"),
        api.json("aggregator", "/v1/nodes"),
        api.json("model", "/v1/models"),
        api.json("chain", "/v1/members?role=hospital"),
      ]);
      if (over) return;
      render(state({ jobs, nodes, models, hospitals }), view);
    } catch (error) {
      if (over) return;
      render(html`<p class="problem">${sentence(error)}</p>`, view);
    }
    timer = setTimeout(load, REFRESH_MS);
  };
  load();
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

function stranger() {
  const out = session.current === null;
  return html`<section class="panel">
      <h2>${out ? "Sign in to look around" : "Your account has no role yet"}</h2>
      <p>
        ${
          out
            ? "Administrators run training jobs, clinicians ask the model, auditors check the ledger. Your wallet says who you are; the ledger says what you may do."
            : "Open one of the pages above to ask an administrator for a role."
        }
      </p>
      ${out ? html`<button class="primary" @click=${() => signIn(session)}>Sign in</button>` : nothing}
    </section>
    ${howItWorks()}`;
}

function howItWorks() {
  return html`<section>
    <h2>How a round works</h2>
    <ol class="steps">
      <li><strong>Open.</strong> The round begins on the ledger, with the hash of the model that everybody starts from.</li>
      <li><strong>Train.</strong> Each hospital trains on its own pictures. Only weights and counts leave it.</li>
      <li><strong>Sign.</strong> It signs the hash of its update with its own key, and the contract checks the signature.</li>
      <li><strong>Fold.</strong> Updates that are on the ledger, and sound, are averaged into the next model.</li>
      <li><strong>Publish.</strong> The finished model serves clinicians, and anyone entitled can recompute it to the last bit.</li>
    </ol>
  </section>`;
}

function state({ jobs, nodes, models, hospitals }) {
  const here = nodes.filter(isOnline);
  const running = jobs.filter((job) => !ENDED.has(job.phase));
  return html`<section class="tiles" aria-label="The consortium now">
      ${tile("Hospitals enrolled", count(hospitals.length), `${count(here.length)} online now`, "/consortium")}
      ${tile("Jobs running", count(running.length), `${count(jobs.length)} in all`, "/jobs")}
      ${tile("Models published", count(models.length), models.length ? `newest ${moment(models[0].published_at)}` : "none yet", "/diagnosis")}
      ${tile("Training pictures", count(pictures(nodes)), "that never left their hospitals", "/consortium")}
    </section>
    ${running.length ? runningJobs(running) : nextStep({ jobs, hospitals, here })}
    ${models.length ? newest(models[0], jobs) : nothing}`;
}

const pictures = (nodes) => nodes.flatMap((node) => node.registration.training_images).reduce((sum, n) => sum + n, 0);

const tile = (label, value, note, href) =>
  html`<a class="tile" href=${href}><span class="label">${label}</span><span class="value">${value}</span><span class="note">${note}</span></a>`;

function runningJobs(jobs) {
  return html`<section class="panel">
    <h2>Training now</h2>
    <ul class="rows">
      ${jobs.map(
        (job) => html`<li>
          <a href="/job?id=${job.id}"><strong>${job.spec.name}</strong></a>
          <span class="quiet">${architecture(job.spec.architecture)}</span>
          <span class="badge live">${job.paused ? "paused" : PHASES[job.phase].label}</span>
          <span>round ${job.round} of ${job.spec.rounds}</span>
          <span class="quiet">${job.detail}</span>
        </li>`,
      )}
    </ul>
  </section>`;
}

function nextStep({ jobs, hospitals, here }) {
  const admin = session.holds("admin");
  const step =
    hospitals.length === 0
      ? ["No hospital is enrolled yet.", "/consortium", admin ? "Enrol hospitals" : "See who asked"]
      : here.length === 0
        ? ["No hospital is online. Their nodes connect by themselves once they run.", "/consortium", "See hospitals"]
        : [
            jobs.length ? "No job is running." : "Hospitals are ready, and no job was started yet.",
            admin ? "/new-job" : "/jobs",
            admin ? "Start a job" : "See jobs",
          ];
  return html`<section class="panel empty">
    <h2>${step[0]}</h2>
    <a class="button primary" href=${step[1]}>${step[2]}</a>
  </section>`;
}

function newest(model, jobs) {
  const job = jobs.find((each) => each.id === model.job);
  const last = job?.rounds.filter((round) => round.pooled).at(-1)?.pooled;
  const [first, ...others] = shownOf(model);
  return html`<section class="panel">
    <h2>The newest model</h2>
    <dl class="facts">
      <div><dt>Network</dt><dd>${architecture(model.architecture)}, ${model.image_size} × ${model.image_size} pixels</dd></div>
      <div><dt>Job</dt><dd><a href="/job?id=${model.job}">${job?.spec.name ?? brief(model.job)}</a></dd></div>
      <div><dt>Trained by</dt><dd>${count(model.contributors.length)} hospitals in ${count(model.rounds)} rounds</dd></div>
      <div><dt>${foundOf(first, model)}</dt><dd>${percent(figureOf(first, last, model))} on held-out ${heldOutOf(model)}</dd></div>
      ${others.map((metric) => html`<div><dt>${foundOf(metric, model)}</dt><dd>${percent(figureOf(metric, last, model))}</dd></div>`)}
      <div><dt>Where it came from</dt><dd><a href="/lineage?job=${model.job}">lineage of <code>${brief(model.digest)}</code></a></dd></div>
    </dl>
    ${session.holds("clinician") ? html`<a class="button primary" href="/diagnosis">Ask it about a picture</a>` : nothing}
  </section>`;
}
