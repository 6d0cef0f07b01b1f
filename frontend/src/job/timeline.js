// A round's phases as a timeline: what is done, what is now, what comes next, and when. Pure.

import { ENDED, PHASES, roundPhases } from "../jobs.js";

/**
 * The steps of a round: `{phase, label, what, state, at, seconds}`.
 *
 * `state` is "done", "now", "next", or "never" where the round was given up before; `at` when it began, `seconds` how
 * long it took, each null where nobody knows.
 */
export function timeline(state, number) {
  const { view, since } = state;
  if (number === 0) return [baseline(view, since)];
  const round = view.rounds.find((each) => each.round === number);
  const isCurrent = view.round === number;
  const times = timesOf(view, round, isCurrent ? since : {});
  const phases = roundPhases(view.spec);
  const at = isCurrent ? phases.indexOf(view.phase) : -1;
  const over = !isCurrent || ENDED.has(view.phase) || view.phase === "publishing";
  return phases.map((phase, index) => ({
    phase,
    label: PHASES[phase].label,
    what: PHASES[phase].what,
    state: over ? overState(round, index) : index < at ? "done" : index === at ? "now" : "next",
    ...times[phase],
  }));
}

/** A round's outcome in a word: "open", "closed", "given up", or "evaluated" for round 0. */
export function outcome(state, number) {
  const round = state.view.rounds.find((each) => each.round === number);
  if (number === 0) return round?.pooled ? "evaluated" : "open";
  if (round?.closed_at) return "closed";
  const ended = [...state.ledger.values()].some((event) => event.round === number && event.name === "RoundAborted");
  return ended || number < state.view.round || ENDED.has(state.view.phase) ? "given up" : "open";
}

/** Seconds that a round's deadline is away (negative once it passed); null where none is being waited for. */
export function remaining(view, now) {
  if (view.phase !== "training") return null;
  const deadline = view.rounds.find((each) => each.round === view.round)?.deadline;
  return deadline == null ? null : deadline - now / 1000;
}

/** Seconds as a clock shows them: "4:05", "1:02:03", "2 d 3:00:00". */
export function clock(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  const pad = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  if (days) return `${days} d ${hours}:${pad(minutes)}:${pad(whole % 60)}`;
  if (hours) return `${hours}:${pad(minutes)}:${pad(whole % 60)}`;
  return `${minutes}:${pad(whole % 60)}`;
}

function baseline(view, since) {
  const round = view.rounds.find((each) => each.round === 0);
  const now = view.phase === "baseline";
  const at = ms(round?.opened_at) ?? since.baseline ?? null;
  return {
    phase: "baseline",
    ...PHASES.baseline,
    state: now ? "now" : round?.pooled ? "done" : "never",
    at,
    seconds: null,
  };
}

function overState(round, index) {
  if (round?.closed_at) return "done";
  if (!round?.opened_at) return "never";
  return index <= 1 ? "done" : "never";
}

// Written times first (they are the aggregator's), then what the page heard itself.
function timesOf(view, round, since) {
  const opened = ms(round?.opened_at);
  const closed = ms(round?.closed_at);
  const folding = closed === null ? (since.folding ?? null) : closed - round.seconds_folding * 1000;
  const unmasking = since.unmasking ?? null;
  const next = ms(view.rounds.find((each) => each.round > (round?.round ?? 0) && each.opened_at)?.opened_at);
  return {
    opening: { at: since.opening ?? opened, seconds: span(since.opening, opened) },
    training: { at: opened, seconds: span(opened, unmasking ?? folding) },
    unmasking: { at: unmasking, seconds: span(unmasking, folding) },
    folding: { at: folding, seconds: span(folding, closed) },
    evaluating: { at: closed, seconds: span(closed, since.publishing ?? next) },
  };
}

const ms = (text) => (text ? Date.parse(text) : null);
const span = (from, to) => (from == null || to == null ? null : Math.max(0, (to - from) / 1000));
