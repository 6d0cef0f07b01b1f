// Events as files: every page that filters give, as JSON or as CSV that spreadsheets may open. Pure but for asking.
//
// Sources: RFC 4180 (CSV); OWASP, "CSV Injection", for cells that a spreadsheet would run as formulas.

import { eventsQuery } from "./filters.js";

export const PAGE = 500;
const COLUMNS = ["at", "block", "log_index", "transaction", "name", "job", "round", "account", "arguments"];
const FORMULA = /^[=+\-@\t\r]/;

/** All events for filters, page after page, the newest first. `progress(number)` says how many are there so far. */
export async function allEvents(api, filters, { progress = () => {}, signal } = {}) {
  const events = [];
  let before;
  do {
    const page = await api.json("chain", `/v1/events${eventsQuery(filters, { before, limit: PAGE })}`, { signal });
    events.push(...page.events);
    before = page.before;
    progress(events.length);
  } while (before);
  return events;
}

/** Events as indented JSON, as the chain service gives them. */
export const toJson = (events) => `${JSON.stringify(events, null, 2)}\n`;

/** Events as CSV: a header, lines ended by CRLF, arguments as JSON in one cell. */
export function toCsv(events) {
  const rows = events.map((event) =>
    COLUMNS.map((column) => (column === "arguments" ? JSON.stringify(event.arguments) : (event[column] ?? ""))),
  );
  return [COLUMNS, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

/** One cell: quoted where it must be, and never a formula. Numbers stay numbers. */
export function cell(value) {
  if (typeof value === "number") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
