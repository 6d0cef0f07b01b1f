import assert from "node:assert/strict";
import { test } from "node:test";
import { chips, eventsQuery, filterProblems, filtersFrom, NONE, pageQuery } from "../src/ledger/filters.js";

const JOB = "ab".repeat(32);
const ACCOUNT = `0x${"Ab".repeat(20)}`;
const ALL = { job: JOB, round: "2", kinds: ["RoundOpened", "UpdateRecorded"], account: ACCOUNT, from: "0", to: "90" };

test("filters survive the page's address", () => {
  assert.deepEqual(filtersFrom(""), NONE);
  assert.equal(pageQuery(NONE), "");
  assert.deepEqual(filtersFrom(pageQuery(ALL)), { ...ALL, account: ACCOUNT.toLowerCase() });
  assert.deepEqual(filtersFrom("?kind=Nonsense&kind=Paused&kind=Paused&round=%202%20").kinds, ["Paused"]);
  assert.equal(filtersFrom("?round=%202%20").round, "2");
});

test("the chain service is asked for what the filters say", () => {
  const asked = new URLSearchParams(eventsQuery(ALL, { before: "12-3", limit: 50 }));
  assert.deepEqual(asked.getAll("name"), ["RoundOpened", "UpdateRecorded"]);
  assert.equal(asked.get("account"), ACCOUNT.toLowerCase());
  assert.deepEqual([asked.get("from_block"), asked.get("to_block")], ["0", "90"]);
  assert.deepEqual([asked.get("before"), asked.get("limit")], ["12-3", "50"]);
  assert.equal(eventsQuery(NONE, { limit: 50 }), "?limit=50");
});

test("what makes no sense is named by field", () => {
  assert.deepEqual(filterProblems(NONE), {});
  assert.deepEqual(filterProblems(ALL), {});
  const wrong = filterProblems({ ...NONE, job: "x", round: "0", account: "0x1", from: "-1", to: "1.5" });
  assert.deepEqual(Object.keys(wrong).sort(), ["account", "from", "job", "round", "to"]);
  assert.deepEqual(Object.keys(filterProblems({ ...NONE, from: "10", to: "9" })), ["to"]);
  assert.deepEqual(Object.keys(filterProblems({ ...NONE, round: String(2 ** 32) })), ["round"]);
});

test("each chip says a filter and takes it away", () => {
  const found = chips(ALL, { job: () => "first", account: () => "Utrecht" });
  assert.deepEqual(
    found.map((chip) => chip.label),
    ["job first", "round 2", "round opened", "update submitted", "Utrecht", "from block 0", "to block 90"],
  );
  assert.deepEqual(found[2].rest, { ...ALL, kinds: ["UpdateRecorded"] });
  assert.deepEqual(found[0].rest, { ...ALL, job: "" });
  assert.deepEqual(chips(NONE), []);
});
