// A job's rounds as the series that its charts and their tables show, and each in a sentence. Pure.

import { classesOf, heldOutOf, inWords } from "../classes.js";
import { bytes, decimal, duration, percent } from "../format.js";
import { figureOf, headlineOf, shownOf, titleOf, wordsOf } from "../judging.js";

const MOST_LINES = 6;

/**
 * The charts: `{id, title, what, kind, unit, labels, series, columns, sentence}`.
 *
 * `labels` are the rounds in order; `series` what is drawn and `columns` what the table shows, each `{label, values}`
 * with null where there is none. `kind` is "line" or "bar", `unit` one of "share", "plain", "seconds", "bytes".
 */
export function charts(view) {
  const evaluated = view.rounds.filter((round) => round.pooled);
  const closed = view.rounds.filter((round) => round.round > 0 && round.closed_at);
  return [judged(view, evaluated), spread(view, evaluated), loss(evaluated), seconds(closed), moved(closed)];
}

/** A value in its chart's unit, as people read it. */
export function inUnit(unit, value) {
  if (value == null) return "–";
  return { share: percent, plain: decimal, seconds: duration, bytes }[unit](value);
}

function judged({ spec }, rounds) {
  const shown = shownOf(spec);
  const series = shown.map((metric) => ({
    label: titleOf(metric, spec),
    values: rounds.map((round) => figureOf(metric, round.pooled, spec)),
  }));
  const name = (metric, at) => (at === 0 ? titleOf(metric, spec) : wordsOf(metric, spec));
  const told = () => shown.map((metric, at) => change(name(metric, at), series[at].values, rounds, "share"));
  const target = spec.target;
  if (target != null) series.push({ label: "Target", values: rounds.map(() => target), dashed: true });
  return chart({
    id: "accuracy",
    title: listed(shown.map(name)),
    what: `On held-out ${heldOutOf(spec)} of all hospitals together${MEANS.filter(([metric]) => shown.includes(metric))
      .map(([, means]) => `; ${means(inWords(classesOf(spec).length))}`)
      .join("")}.`,
    kind: "line",
    unit: "share",
    rounds,
    series,
    sentence: rounds.length ? `${told().join("; ")}.` : "No model was evaluated yet.",
  });
}

const MEANS = [
  ["balanced_accuracy", (classes) => `balanced accuracy is the mean of the ${classes} classes' recalls`],
  ["macro_auc", (classes) => `mean AUC is that of the ${classes} classes, each against the rest`],
];

const listed = (names) => (names.length < 2 ? names.join() : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

function loss(rounds) {
  const series = [{ label: "Loss", values: rounds.map((round) => round.pooled.loss) }];
  return chart({
    id: "loss",
    title: "Loss",
    what: "Mean cross-entropy on held-out lesions of all hospitals together; lower is better.",
    kind: "line",
    unit: "plain",
    rounds,
    series,
    sentence: rounds.length ? `${change("Loss", series[0].values, rounds, "plain")}.` : "No model was evaluated yet.",
  });
}

function spread({ spec }, rounds) {
  const metric = headlineOf(spec);
  const scoreOf = (site) => figureOf(metric, site?.scores, spec);
  const names = siteNames(rounds);
  const columns = [...names].map(([hospital, label]) => ({
    label,
    values: rounds.map((round) => scoreOf(round.sites.find((site) => site.hospital === hospital))),
  }));
  const series = columns.length <= MOST_LINES ? columns : extremes(rounds, scoreOf);
  const last = known(rounds.at(-1)?.sites.map(scoreOf) ?? []);
  return chart({
    id: "spread",
    title: `${titleOf(metric, spec)} by hospital`,
    what: "The same model on each hospital's own held-out lesions.",
    kind: "line",
    unit: "share",
    rounds,
    series,
    columns,
    sentence: last.length
      ? `After ${roundName(rounds.at(-1))}, from ${percent(Math.min(...last))} to ${percent(Math.max(...last))} at ${last.length} ${last.length === 1 ? "hospital" : "hospitals"}.`
      : "No model was evaluated yet.",
  });
}

function seconds(rounds) {
  const of = (key) => rounds.map((round) => round[key]);
  const series = [
    { label: "Training (longest)", values: of("seconds_training") },
    { label: "Moving files (sum)", values: of("seconds_moving") },
    { label: "Ledger (sum)", values: of("seconds_chain") },
    { label: "Aggregating", values: of("seconds_folding") },
  ];
  const last = rounds.at(-1);
  return chart({
    id: "seconds",
    title: "Seconds a round",
    what: "The longest local training; downloads and uploads, and transactions, summed over hospitals; aggregation.",
    kind: "bar",
    unit: "seconds",
    rounds,
    series,
    sentence: last
      ? `In ${roundName(last)}: training ${duration(last.seconds_training)}, moving files ${duration(last.seconds_moving)}, ledger ${duration(last.seconds_chain)}, aggregating ${duration(last.seconds_folding)}.`
      : "No round was closed yet.",
  });
}

function moved(rounds) {
  const series = [{ label: "Bytes moved", values: rounds.map((round) => round.bytes_moved) }];
  const sum = series[0].values.reduce((total, value) => total + value, 0);
  return chart({
    id: "bytes",
    title: "Bytes a round",
    what: "Models that hospitals downloaded and updates that they uploaded.",
    kind: "bar",
    unit: "bytes",
    rounds,
    series,
    sentence: rounds.length
      ? `${bytes(sum)} in ${rounds.length} ${rounds.length === 1 ? "round" : "rounds"}.`
      : "No round was closed yet.",
  });
}

const chart = ({ rounds, columns, ...rest }) => ({
  ...rest,
  columns: columns ?? rest.series,
  labels: rounds.map((round) => (round.round === 0 ? "start" : String(round.round))),
});

function siteNames(rounds) {
  const names = new Map();
  for (const round of rounds) {
    for (const site of round.sites) names.set(site.hospital, site.site || `${site.hospital.slice(0, 8)}…`);
  }
  return new Map([...names].sort(([, a], [, b]) => a.localeCompare(b, "en", { numeric: true })));
}

const known = (values) => values.filter((value) => value != null);

function extremes(rounds, scoreOf) {
  const sorted = rounds.map((round) => known(round.sites.map(scoreOf)).sort((a, b) => a - b));
  const median = (values) =>
    values.length ? (values[Math.floor((values.length - 1) / 2)] + values[Math.floor(values.length / 2)]) / 2 : null;
  return [
    { label: "Best hospital", values: sorted.map((values) => values.at(-1) ?? null) },
    { label: "Median", values: sorted.map(median) },
    { label: "Worst hospital", values: sorted.map((values) => values[0] ?? null) },
  ];
}

function change(name, values, rounds, unit) {
  const last = inUnit(unit, values.at(-1));
  if (rounds.length === 1) return `${name} ${last} at ${roundName(rounds[0])}`;
  return `${name} went from ${inUnit(unit, values[0])} at ${roundName(rounds[0])} to ${last} after ${roundName(rounds.at(-1))}`;
}

const roundName = (round) => (round.round === 0 ? "the start" : `round ${round.round}`);
