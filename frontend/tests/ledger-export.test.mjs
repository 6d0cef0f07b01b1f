import assert from "node:assert/strict";
import { test } from "node:test";
import { allEvents, cell, PAGE, toCsv, toJson } from "../src/ledger/export.js";
import { NONE } from "../src/ledger/filters.js";

const event = (block, given = {}) => ({
  name: "RoundAborted",
  job: "ab".repeat(32),
  round: 1,
  account: null,
  block,
  log_index: 0,
  transaction: "0xcd",
  at: null,
  arguments: { round: 1 },
  ...given,
});

test("cells are quoted where RFC 4180 says so", () => {
  assert.equal(cell("plain"), "plain");
  assert.equal(cell("a,b"), '"a,b"');
  assert.equal(cell('say "so"'), '"say ""so"""');
  assert.equal(cell("two\r\nlines"), '"two\r\nlines"');
  assert.equal(cell(""), "");
});

test("no cell is a formula, numbers stay numbers", () => {
  for (const text of ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"]) assert.match(cell(text), /^"?'/);
  assert.equal(cell('=HYPERLINK("x","y")'), `"'=HYPERLINK(""x"",""y"")"`);
  assert.equal(cell(-1), "-1");
  assert.equal(cell("a=b"), "a=b");
});

test("CSV has a header, CRLF, and arguments as JSON", () => {
  const text = toCsv([event(3, { at: "2026-11-24T10:00:00Z", arguments: { job: "x", round: 1 } })]);
  const [header, row, rest] = text.split("\r\n");
  assert.equal(header, "at,block,log_index,transaction,name,job,round,account,arguments");
  assert.equal(row, `2026-11-24T10:00:00Z,3,0,0xcd,RoundAborted,${"ab".repeat(32)},1,,"{""job"":""x"",""round"":1}"`);
  assert.equal(rest, "");
  assert.equal(toCsv([]).split("\r\n").length, 2);
});

test("JSON is what the chain service gave", () => {
  assert.deepEqual(JSON.parse(toJson([event(1)])), [event(1)]);
});

test("every page is fetched, in order, with progress", async () => {
  const pages = { "": [event(9), event(8)], "8-0": [event(7)], "7-0": [] };
  const next = { "": "8-0", "8-0": "7-0", "7-0": null };
  const seen = [];
  const api = {
    async json(_service, path) {
      const asked = new URL(path, "http://x").searchParams;
      assert.equal(asked.get("limit"), String(PAGE));
      const at = asked.get("before") ?? "";
      return { events: pages[at], before: next[at] };
    },
  };
  const found = await allEvents(api, NONE, { progress: (number) => seen.push(number) });
  assert.deepEqual(
    found.map((each) => each.block),
    [9, 8, 7],
  );
  assert.deepEqual(seen, [2, 3, 3]);
});
