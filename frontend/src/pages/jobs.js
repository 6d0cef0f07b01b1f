// All training jobs, newest first, kept up to date.

import { architecture, moment, percent, short } from "../format.js";
import { html, nothing, render, repeat } from "../html.js";
import { badge, closedRounds, ENDED, latest, roundOf } from "../jobs.js";
import { figureOf, foundOf, headlineOf } from "../judging.js";
import { api, page } from "../page.js";
import { sentence } from "../problem.js";

const REFRESH_MS = 5_000;
const SOON_MS = 400;

page({ what: "the jobs", start });

function start(view, session) {
  const place = document.getElementById("new");
  const isAdmin = session.holds("admin");
  let jobs;
  let problem = "";
  let timer;
  let over = false;

  render(isAdmin ? html`<a class="button primary" href="/new-job">New job</a>` : nothing, place);
  const draw = () => !over && render(content(jobs, problem, isAdmin), view);
  const load = async () => {
    try {
      jobs = await api.json("aggregator", "/v1/jobs");
      problem = "";
    } catch (error) {
      problem = sentence(error);
    }
    draw();
    if (!over) timer = setTimeout(load, REFRESH_MS);
  };
  const late = setTimeout(draw, SOON_MS);
  load();
  return () => {
    over = true;
    clearTimeout(late);
    clearTimeout(timer);
    render(nothing, place);
  };
}

function content(jobs, problem, isAdmin) {
  return html`${problem ? html`<p class="problem" role="status">${problem} ${jobs ? "What is shown may be old." : "Trying again…"}</p>` : nothing}
  ${jobs === undefined ? (problem ? nothing : html`<p class="busy">Reading the jobs…</p>`) : jobs.length ? list(jobs) : empty(isAdmin)}`;
}

function list(jobs) {
  return html`<ul class="jobs">
    ${repeat(
      jobs,
      (job) => job.id,
      (job) => card(job),
    )}
  </ul>`;
}

function card(job) {
  const { label, look } = badge(job);
  const score = latest(job);
  const metric = headlineOf(job.spec);
  return html`<li class="panel">
    <div class="head">
      <h2><a href="/job?id=${job.id}">${job.spec.name}</a></h2>
      <span class="badge ${look}">${label}</span>
    </div>
    <dl class="facts">
      <div><dt>Network</dt><dd>${architecture(job.spec.architecture)}</dd></div>
      <div>
        <dt>Progress</dt>
        <dd>
          ${roundOf(job)}
          <progress aria-label="Rounds of ${job.spec.name}" max=${job.spec.rounds} .value=${closedRounds(job)}></progress>
        </dd>
      </div>
      <div><dt>${foundOf(metric, job.spec)}</dt><dd>${score ? html`${percent(figureOf(metric, score, job.spec))} <span class="quiet">${score.round ? `after round ${score.round}` : "at the start"}</span>` : "–"}</dd></div>
      <div><dt>Created</dt><dd>${moment(job.created_at)} <span class="quiet">by <code>${short(job.created_by)}</code></span></dd></div>
    </dl>
    ${job.detail && !ENDED.has(job.phase) ? html`<p class="quiet">${job.detail}</p>` : nothing}
  </li>`;
}

const empty = (isAdmin) =>
  html`<section class="panel empty">
    <h2>No job yet</h2>
    <p>
      ${
        isAdmin
          ? "Create one: it begins as soon as enough hospitals are online."
          : "An administrator creates jobs; they appear here, and can be watched live."
      }
    </p>
    ${isAdmin ? html`<a class="button primary" href="/new-job">New job</a>` : html`<a class="button" href="/consortium">See who is in the consortium</a>`}
  </section>`;
