// What each hospital did in a round, put together from its progress, the ledger and the aggregator. Pure.

import { reasonWords } from "../reasons.js";
import { isOnline } from "../sites.js";
import { ledgerEvents, transactionOf } from "./live.js";

/** A node's stages in words. `uploaded` says that its bytes are with the consortium. */
export const STAGES = {
  downloading: { label: "fetching the model", uploaded: false },
  training: { label: "training", uploaded: false },
  uploading: { label: "uploading", uploaded: false },
  submitting: { label: "signing", uploaded: true },
  submitted: { label: "submitted", uploaded: true },
  unmasking: { label: "unmasking the sum", uploaded: true },
  evaluating: { label: "evaluating", uploaded: false },
  evaluated: { label: "evaluated", uploaded: false },
  refused: { label: "refused the task", uploaded: false },
  failed: { label: "failed", uploaded: false },
};

/** A hospital's name: its site, or null where it never registered. */
export const siteOf = (state, address) => state.nodes.get(address)?.registration.site || null;

/**
 * A round's hospitals, by name: `{address, site, stage, fraction, detail, uploaded, collected, confirmed, rejected,
 * evaluated, privacy}`.
 *
 * `collected` says that the update waits for its Merkle round's commitment; `confirmed` is `{block, transaction, latency}` once the ledger has the update, with seconds or null while unknown;
 * `privacy` what its updates of the job cost its lesions, where the job has differential privacy; `rejected` the reason in words; `stage` null for a hospital that is online and was not heard of in this round.
 */
export function hospitals(state, number) {
  const round = state.view?.rounds.find((each) => each.round === number);
  const rows = new Map();
  const row = (address) => {
    if (!rows.has(address)) rows.set(address, blank(address, siteOf(state, address)));
    return rows.get(address);
  };
  if (state.view?.round === number && isWaiting(state.view.phase)) {
    for (const node of state.nodes.values()) if (isOnline(node)) row(node.address);
  }
  for (const [address, { stage, fraction, detail }] of Object.entries(round?.progress ?? {})) {
    Object.assign(row(address), { stage, fraction, detail });
  }
  for (const site of round?.sites ?? []) {
    row(site.hospital).evaluated = true;
    row(site.hospital).site ??= site.site || null;
  }
  for (const [address, spent] of Object.entries(round?.privacy ?? {})) row(address).privacy = spent;
  for (const { hospital, reason } of round?.rejected ?? []) row(hospital).rejected = reasonWords(reason);
  for (const event of ledgerEvents(state)) {
    if (event.round !== number) continue;
    const { hospital } = event.arguments;
    if (event.name === "UpdateRecorded") row(hospital).confirmed = confirmation(state, event, hospital);
    if (event.name === "UpdateRejected") row(hospital).rejected = reasonWords(event.arguments.reason);
  }
  const merkle = state.rounds.get(number);
  for (const address of merkle?.collected ?? []) row(address).collected = true;
  for (const each of merkle?.updates ?? []) {
    row(each.update.hospital).confirmed = confirmation(state, each, each.update.hospital);
  }
  for (const each of rows.values()) settle(each);
  return [...rows.values()].sort((a, b) =>
    (a.site ?? a.address).localeCompare(b.site ?? b.address, "en", { numeric: true }),
  );
}

/** One sentence on a round's hospitals, for the head of their list. */
export function tally(rows) {
  const confirmed = rows.filter((row) => row.confirmed).length;
  const rejected = rows.filter((row) => row.rejected).length;
  const collected = rows.filter((row) => row.collected).length;
  const parts = [`${confirmed} of ${rows.length} on the ledger`];
  if (collected) parts.push(`${collected} collected`);
  if (rejected) parts.push(`${rejected} rejected`);
  return parts.join(", ");
}

const isWaiting = (phase) => ["baseline", "opening", "training", "evaluating"].includes(phase);

function blank(address, site) {
  return {
    address,
    site,
    stage: null,
    fraction: 0,
    detail: "",
    uploaded: false,
    collected: false,
    confirmed: null,
    rejected: null,
    evaluated: false,
    privacy: null,
  };
}

function confirmation(state, { block, transaction }, hospital) {
  const known = transactionOf(state, transaction, hospital);
  const latency = known ? (Date.parse(known.confirmed_at) - Date.parse(known.received_at)) / 1000 : null;
  return { block, transaction, latency };
}

// The ledger may be ahead of what a node said last: an update that is on it was trained, uploaded and submitted.
function settle(row) {
  if (row.confirmed) row.collected = false;
  const submitted = ["submitted", "unmasking", "evaluating", "evaluated"].includes(row.stage);
  if ((row.confirmed || row.collected) && !submitted) {
    Object.assign(row, { stage: "submitted", fraction: 1, detail: "" });
  }
  if (row.evaluated && row.stage === "evaluating") row.stage = "evaluated";
  row.uploaded = row.confirmed !== null || row.collected || Boolean(STAGES[row.stage]?.uploaded);
}
