// A job, live: its phases, its hospitals, its charts, as the consortium's services and the ledger tell them.

import { html, render } from "../html.js";
import { calibratedRound, reliability } from "../job/calibration.js";
import { Card } from "../job/card.js";
import { Controls } from "../job/controls.js";
import { calibration, confusion, drawCharts, figures } from "../job/figures.js";
import { roundPanel } from "../job/round.js";
import { charts } from "../job/series.js";
import { result, standing } from "../job/summary.js";
import { watch } from "../job/watch.js";
import { ENDED } from "../jobs.js";
import { api, page } from "../page.js";
import { sentence } from "../problem.js";

const BATCH_MS = 40; // changes are drawn together
const SOON_MS = 400;

page({ what: "this job", start });

function start(view, session) {
  const id = new URLSearchParams(location.search).get("id") ?? "";
  const leaving = new AbortController();
  let known = { state: { view: null }, connection: "connecting", problem: null };
  let chosen = null;
  let drawer = null;
  let timer;
  let refused = false;

  const soon = () => {
    if (!leaving.signal.aborted && !refused) timer ??= setTimeout(draw, BATCH_MS);
  };
  const controls = new Controls(api, id, soon);
  const card = new Card(api, id, soon);
  const choose = (number) => {
    chosen = number;
    draw();
  };

  function draw() {
    timer = undefined;
    const { state, connection, problem } = known;
    if (state.view === null) return render(waiting(connection, problem), view);
    const number = chosen ?? state.view.round;
    const overRounds = charts(state.view);
    const calibrated = calibratedRound(state.view, number);
    const honest = calibrated && reliability(state.view, calibrated);
    name(state.view.spec.name);
    render(
      html`${standing(state.view, connection)} ${result(state.view, session, card)}
      ${session.holds("admin") && !ENDED.has(state.view.phase) ? controls.template(state.view) : ""}
      ${roundPanel(state, number, chosen, choose, Date.now())} ${figures(overRounds)}
      ${calibration(state.view, calibrated, honest)} ${confusion(state.view, number)}`,
      view,
    );
    if (drawer) drawCharts(view, drawer, honest ? [...overRounds, honest] : overRounds);
    return undefined;
  }

  const fail = (error) => {
    if (leaving.signal.aborted) return;
    refused = true;
    clearTimeout(timer);
    render(error.status === 404 || error.status === 422 ? unknown() : failure(error), view);
  };

  const late = setTimeout(soon, SOON_MS);
  const tick = setInterval(() => known.state.view && !ENDED.has(known.state.view.phase) && soon(), 1000);
  watch(
    api,
    id,
    (state, connection, problem) => {
      const first = known.state.view === null && state.view !== null;
      known = { state, connection, problem };
      if (first) draw();
      else if (state.view !== null || connection === "waiting") soon();
      if (first) loadCharts();
    },
    leaving.signal,
  ).catch(fail);

  async function loadCharts() {
    const { Charts } = await import("../job/charts.js");
    if (leaving.signal.aborted) return;
    drawer = new Charts();
    soon();
  }

  return () => {
    leaving.abort();
    clearInterval(tick);
    clearTimeout(late);
    clearTimeout(timer);
    drawer?.end();
  };
}

function name(text) {
  const title = document.getElementById("title");
  if (title.textContent === text) return;
  title.textContent = text;
  document.title = `${text} · Concilia`;
}

const waiting = (connection, problem) =>
  connection === "waiting"
    ? html`<p class="problem">${sentence(problem)} Trying again…</p>`
    : html`<p class="busy">Reading the job…</p>`;

const unknown = () =>
  html`<section class="panel empty">
    <h2>There is no such job</h2>
    <p>The address may be mistyped, or the job belongs to another consortium.</p>
    <a class="button primary" href="/jobs">See all jobs</a>
  </section>`;

const failure = (error) =>
  html`<section class="panel empty">
    <p class="problem">${sentence(error)}</p>
    <button @click=${() => location.reload()}>Try again</button>
  </section>`;
