// The head of the live page: where the job stands, what was asked for, and what came of it.

import { heldOutOf } from "../classes.js";
import {
  architecture,
  brief,
  count,
  decimal,
  duration,
  encodingSentence,
  moment,
  percent,
  privacySentence,
  short,
  strategySentence,
} from "../format.js";
import { html, nothing } from "../html.js";
import { badge, closedRounds, ENDED, latest, PHASES, roundOf } from "../jobs.js";
import { figureOf, foundOf, headlineOf, shownOf, wordsOf } from "../judging.js";

const CONNECTION = {
  connecting: { look: "", text: "connecting…" },
  live: { look: "good", text: "live" },
  waiting: { look: "warn", text: "reconnecting…, nothing is lost" },
  over: { look: "", text: "ended, all is shown" },
};

// While updates are averaged, and once the model is published, the service's detail is still of the phase before.
const detail = ({ phase, detail }) =>
  phase === "folding" || phase === "finished" ? PHASES[phase].what : detail || PHASES[phase].what;

/** Phase, round, score, and how the connection does. */
export function standing(view, connection) {
  const { label, look } = badge(view);
  const score = latest(view);
  const { look: how, text } = CONNECTION[connection];
  const [first, ...others] = shownOf(view.spec);
  return html`<section class="panel standing" aria-label="Where the job stands">
    <div class="head">
      <p><span class="badge ${look}" id="phase">${label}</span> <strong>${roundOf(view)}</strong></p>
      <p role="status"><span class="badge ${how}" id="connection">${text}</span></p>
    </div>
    <p class="quiet detail">${detail(view)}</p>
    <dl class="facts">
      <div><dt>${foundOf(first, view.spec)}</dt><dd><strong id="score">${percent(figureOf(first, score, view.spec))}</strong> ${after(score)}</dd></div>
      ${others.map((metric) => html`<div><dt>${foundOf(metric, view.spec)}</dt><dd><strong>${percent(figureOf(metric, score, view.spec))}</strong></dd></div>`)}
      <div><dt>Loss</dt><dd><strong>${decimal(score?.loss)}</strong></dd></div>
      <div><dt>Target</dt><dd>${view.spec.target === null ? "none" : percent(view.spec.target)}</dd></div>
    </dl>
    ${asked(view)}
  </section>`;
}

const after = (score) =>
  score === null
    ? nothing
    : html`<span class="quiet">${score.round === 0 ? "at the start" : `after round ${score.round}`}</span>`;

/** A job from before there was a choice is evaluated after every round. */
const every = (rounds = 1) =>
  rounds === 1 ? "after every round" : `every ${count(rounds)} rounds, and after the last`;

/** How the learning rate goes, and by what steps. */
const rate = ({ local, schedule }) =>
  [
    local.optimizer === "adamw" ? "AdamW" : "SGD",
    schedule?.whole_job ? "falling over the whole job" : "falling in every round",
    ...(schedule?.head_rounds ? [`the last layer alone for ${count(schedule.head_rounds)}`] : []),
    ...(schedule?.statistics_rounds ? [`statistics kept after round ${count(schedule.statistics_rounds)}`] : []),
  ].join(", ");

function asked({ id, spec, created_at, created_by }) {
  const { local } = spec;
  const facts = [
    ["Tells apart", spec.classification?.name ?? "the lesions of HAM10000"],
    ["Network", architecture(spec.architecture)],
    ["Strategy", strategySentence(spec.strategy)],
    ["Rounds", count(spec.rounds)],
    ["Quorum", `${count(spec.quorum)} ${spec.quorum === 1 ? "hospital" : "hospitals"} a round`],
    ["Recording", spec.recording === "merkle" ? "a round's updates under one Merkle root" : "each update by itself"],
    ["Updates sent", encodingSentence(spec.encoding)],
    ["Privacy", privacySentence(spec.privacy, spec.strategy)],
    [
      "Evaluation",
      `${every(spec.evaluate_every)}${spec.evaluation.flips ? ", pictures from all sides" : ""}${spec.own_shares ? ", by how often each class comes at their hospital" : ""}`,
    ],
    [
      "Calibration",
      spec.calibrate ? `yes, to find ${percent(spec.sensitivity ?? 0.9, 0)} of what must not be missed` : "no",
    ],
    ["Deadline", `${duration(spec.deadline_seconds)} a round`],
    [
      "Local training",
      `${local.epochs} ${local.epochs === 1 ? "epoch" : "epochs"}, batches of ${local.batch_size}, learning rate ${local.learning_rate} (${rate(spec)})`,
    ],
    [
      "Pictures",
      `${local.image_size} × ${local.image_size} pixels, ${local.max_images === null ? "all" : `at most ${count(local.max_images)}`} a hospital and round`,
    ],
    ["Seed", spec.seed],
    ["Created", html`${moment(created_at)} by <code>${short(created_by)}</code>`],
    ["Initial weights", html`<code title=${spec.initial}>${brief(spec.initial)}</code>`],
    ["Job", html`<code class="whole">${id}</code>`],
  ];
  return html`<details>
    <summary>What was asked for</summary>
    <dl class="facts asked">${facts.map(([term, what]) => html`<div><dt>${term}</dt><dd>${what}</dd></div>`)}</dl>
  </details>`;
}

/** What came of a job that has ended, and where to go from there, to its model's card among others; nothing before. */
export function result(view, session, card) {
  if (!ENDED.has(view.phase)) return nothing;
  return html`<section class="panel" id="outcome" aria-labelledby="outcome-title">
    <h2 id="outcome-title">${{ finished: "The model is published", failed: "The job failed", stopped: "The job was stopped" }[view.phase]}</h2>
    <p>${sentenceOf(view)}</p>
    <p class="actions">
      ${closedRounds(view) ? html`<a class="button" href="/lineage?job=${view.id}">See its lineage</a>` : nothing}
      ${view.phase === "finished" ? card.template() : nothing}
      ${view.phase === "finished" && session.holds("clinician", "admin", "auditor", "hospital") ? html`<a class="button primary" href="/diagnosis">Ask it about a picture</a>` : nothing}
      ${view.phase !== "finished" && session.holds("admin") ? html`<a class="button" href="/new-job">Create another job</a>` : nothing}
    </p>
  </section>`;
}

function sentenceOf(view) {
  const closed = closedRounds(view);
  const rounds = `${count(closed)} ${closed === 1 ? "round" : "rounds"}`;
  if (view.phase === "finished") {
    const metric = headlineOf(view.spec);
    const of = (scores) => percent(figureOf(metric, scores, view.spec));
    const start = view.rounds.find((round) => round.round === 0)?.pooled;
    return `After ${rounds}, ${wordsOf(metric, view.spec)} on held-out ${heldOutOf(view.spec)} went from ${of(start)} to ${of(latest(view))}.`;
  }
  const why = view.phase === "failed" ? `${view.detail || "Too many rounds in a row were given up"}. ` : "";
  return `${why}${closed ? `${rounds} had been closed` : "No round had been closed"}; no model was published.`;
}
