// Which events somebody wants to see: read from the page's address, written into it, asked of the chain service. Pure.

import { brief, count } from "../format.js";
import { KINDS, kind } from "./words.js";

export const NONE = Object.freeze({ job: "", round: "", kinds: [], account: "", from: "", to: "" });

const WHOLE = /^(0|[1-9]\d{0,14})$/;

/** Filters from a query string or a form's data; what makes no sense is kept, for a person to mend. */
export function filtersFrom(entries) {
  const given = new URLSearchParams(entries);
  const text = (name) => (given.get(name) ?? "").trim();
  const known = new Set(KINDS.map(([name]) => name));
  return {
    job: text("job"),
    round: text("round"),
    kinds: [...new Set(given.getAll("kind"))].filter((name) => known.has(name)),
    account: text("account"),
    from: text("from"),
    to: text("to"),
  };
}

/** What is wrong with filters, by field: sentences. Empty where nothing is. */
export function filterProblems({ job, round, account, from, to }) {
  const problems = {};
  if (job && !/^[0-9a-f]{64}$/.test(job)) problems.job = "A job's id has 64 characters, 0 to 9 and a to f.";
  if (round && !(WHOLE.test(round) && Number(round) >= 1 && Number(round) < 2 ** 32))
    problems.round = "Rounds are numbered from 1.";
  if (account && !/^0x[0-9a-fA-F]{40}$/.test(account))
    problems.account = "An address begins with 0x and has 40 digits and letters a to f after it.";
  for (const [field, value] of Object.entries({ from, to }))
    if (value && !WHOLE.test(value)) problems[field] = "Blocks are whole numbers from 0.";
  if (!problems.from && !problems.to && from && to && Number(from) > Number(to))
    problems.to = "The last block comes before the first.";
  return problems;
}

/** The page's query for filters: "" or "?job=…". */
export const pageQuery = (filters) => query({ ...pairsOf(filters, "kind", "from", "to") });

/** The chain service's query for a page of `limit` events before a cursor. */
export const eventsQuery = (filters, { before, limit }) =>
  query({ ...pairsOf(filters, "name", "from_block", "to_block"), before: before ?? "", limit: String(limit) });

/** Active filters as `{label, rest}`: what each says, and the filters without it. `names` knows jobs and accounts. */
export function chips(filters, names = { job: brief, account: (address) => address }) {
  const found = [];
  const chip = (label, change) => found.push({ label, rest: { ...filters, ...change } });
  if (filters.job) chip(`job ${names.job(filters.job)}`, { job: "" });
  if (filters.round) chip(`round ${filters.round}`, { round: "" });
  for (const name of filters.kinds) chip(kind(name), { kinds: filters.kinds.filter((each) => each !== name) });
  if (filters.account) chip(names.account(filters.account), { account: "" });
  if (filters.from) chip(`from block ${count(Number(filters.from))}`, { from: "" });
  if (filters.to) chip(`to block ${count(Number(filters.to))}`, { to: "" });
  return found;
}

function pairsOf({ job, round, kinds, account, from, to }, kindName, fromName, toName) {
  // Addresses in the address bar may have any case; in lower case they carry no checksum that could be wrong (EIP-55).
  return { job, round, [kindName]: kinds, account: account.toLowerCase(), [fromName]: from, [toName]: to };
}

function query(pairs) {
  const result = new URLSearchParams();
  for (const [name, value] of Object.entries(pairs)) {
    for (const each of [value].flat()) if (each !== "") result.append(name, each);
  }
  const text = result.toString();
  return text && `?${text}`;
}
