// What a live page knows of a job, and how each event changes it. Pure: state and event in, state out.
//
// Three sources tell of one job: the aggregator's view, its events, and the ledger (of a Merkle round, whose updates are no
// events, its state as well). They may repeat themselves and come
// in any order relative to each other; whatever that order, the same things known give the same state.

import { ENDED } from "../jobs.js";

/** What is known before anything was heard. `read`: what the ledger had before the stream was opened is known too. */
export const NOTHING = {
  view: null,
  read: false,
  ledger: new Map(),
  transactions: new Map(),
  rounds: new Map(),
  nodes: new Map(),
  since: {},
  pending: null,
};

/**
 * The state after an event. Events of the stream are `{name, data, at}` with the stream's own names, `at` being when the
 * page heard it (milliseconds). The page's own: `asking` (a view was asked for), `view` (it came), `events` (the ledger's,
 * from the chain service), `transactions`, `recorded` (a Merkle round as the chain service has it), `nodes`.
 */
export function reduce(state, event) {
  const { name, data, at } = event;
  switch (name) {
    case "snapshot":
      return shifted({ ...state, view: data, pending: null }, state.view, at);
    case "asking":
      return { ...state, pending: [] };
    case "view":
      return arrived(state, data, at);
    case "job":
    case "progress":
    case "evaluation":
      return told(state, event);
    case "ledger":
      return recorded(state, [data]);
    case "events":
      return { ...recorded(state, data), read: true };
    case "transactions":
      return { ...state, transactions: joined(state.transactions, data, carried) };
    case "recorded":
      return { ...state, rounds: new Map([...state.rounds, [data.round, data]]) };
    case "nodes":
      return { ...state, nodes: new Map(data.map((node) => [node.address, node])) };
    default:
      return state;
  }
}

/** What should be fetched after an event: "view" (something was written), "transactions" (a latency is missing)… */
export function wanted(state, { name, data }) {
  if (name === "round" || name === "evaluation") return ["view"];
  if (name === "job") return ENDED.has(data.phase) ? ["view", "transactions"] : ["nodes"];
  if (name === "ledger" && data.name === "UpdatesCommitted") return ["recorded", "transactions"];
  if (name === "ledger" && data.name === "UpdateRecorded") {
    return transactionOf(state, data.transaction, data.arguments.hospital) ? [] : ["transactions"];
  }
  if (name === "snapshot") return isMerkle(state) ? ["events", "transactions", "recorded"] : ["events", "transactions"];
  if (isMerkle(state) && (name === "events" || (name === "progress" && data.progress.stage === "submitted"))) {
    return ["recorded"];
  }
  return [];
}

const isMerkle = (state) => state.view?.spec.recording === "merkle";
const carried = ({ transaction, hospital }) => `${transaction}:${hospital ?? ""}`;

/** What is known of a transaction as far as it concerns a hospital: it may carry what several asked. */
export const transactionOf = (state, transaction, hospital) =>
  state.transactions.get(carried({ transaction, hospital })) ?? state.transactions.get(carried({ transaction }));

/** Numbers of a Merkle job's rounds that should be read, the newest first: one that is open, and those committed. */
export function unread(state) {
  if (!isMerkle(state)) return [];
  const known = (number) => Boolean(state.rounds.get(number)?.root);
  const committed = ledgerEvents(state).filter((event) => event.name === "UpdatesCommitted");
  const numbers = new Set(committed.map((event) => event.round));
  if (state.view.round > 0 && state.view.phase === "training") numbers.add(state.view.round);
  return [...numbers].filter((number) => !known(number)).sort((a, b) => b - a);
}

/** Events of the ledger in chain order. */
export const ledgerEvents = (state) =>
  [...state.ledger.values()].sort((a, b) => a.block - b.block || a.log_index - b.log_index);

// A view that was asked for may have been read before events that came meanwhile: those are told again on top of it.
// One that a snapshot overtook is older than what is known.
function arrived(state, view, at) {
  if (state.pending === null) return state;
  const fresh = shifted({ ...state, view, pending: null }, state.view, at);
  return state.pending.reduce((so, event) => told(so, event), fresh);
}

function told(state, event) {
  const pending = state.pending && [...state.pending, event];
  if (state.view === null) return { ...state, pending };
  const { name, data, at } = event;
  if (name === "job") return shifted({ ...state, pending, view: { ...state.view, ...data } }, state.view, at);
  if (name === "evaluation") return { ...state, pending };
  const rounds = state.view.rounds.map((round) =>
    round.round === data.round ? { ...round, progress: { ...round.progress, [data.hospital]: data.progress } } : round,
  );
  if (!rounds.some((round) => round.round === data.round)) rounds.push(unwritten(data));
  return { ...state, pending, view: { ...state.view, rounds } };
}

// When each phase was first heard of; a new round begins with a clean sheet.
function shifted(state, before, at) {
  const { phase, round } = state.view;
  if (before && before.phase === phase && before.round === round) return state;
  const kept = before?.round === round ? state.since : {};
  return { ...state, since: before ? { ...kept, [phase]: at } : kept };
}

function recorded(state, events) {
  return { ...state, ledger: joined(state.ledger, events, (item) => `${item.block}:${item.log_index}`) };
}

function joined(map, items, key) {
  const fresh = items.filter((item) => !map.has(key(item)));
  return fresh.length === 0 ? map : new Map([...map, ...fresh.map((item) => [key(item), item])]);
}

// A node may speak of a round before the page has read that it was opened.
function unwritten({ round, hospital, progress }) {
  return {
    round,
    base: null,
    model: null,
    opened_at: null,
    closed_at: null,
    deadline: null,
    accepted: 0,
    rejected: [],
    pooled: null,
    confusion: null,
    sites: [],
    overlapping_lesions: null,
    seconds_training: 0,
    seconds_moving: 0,
    seconds_chain: 0,
    seconds_folding: 0,
    bytes_moved: 0,
    progress: { [hospital]: progress },
  };
}
