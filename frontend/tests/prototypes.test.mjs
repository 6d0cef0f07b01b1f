// No answer of a service reaches a prototype: neither by what the modules do with keys, nor by a hostile document.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { hospitals } from "../src/job/hospitals.js";
import { reduce } from "../src/job/live.js";

const FOLDER = new URL("../src/", import.meta.url);
const MODULES = readdirSync(FOLDER, { recursive: true }).filter((name) => name.endsWith(".js"));

// What assigns by a key that a document may have chosen. A spread and `Object.fromEntries` define members instead.
const WAYS = {
  "names a prototype": /__proto__|\.prototype\b|setPrototypeOf/,
  "walks inherited keys": /\bfor\s*\((?:const|let|var)\s+\w+\s+in\b/,
  "assigns below a computed key": /\]\s*(?:\?\.|\.|\[)[^=\n;(]*[^=!<>]=(?![=>])/,
};

// Assignments by a computed key: every key is one of ours.
const OWN_KEYS = {
  "diagnosis/attention.js": ["out[y * width + x] ="], // a place in a list
  "job/charts.js": ["chart.data.datasets[index] ="], // a place in a list
  "job/spec.js": [
    "found[field] =", // of LIMITS
    "fields[field] ??=", // of WHERE; what is inherited there is no word, and no member that anything has
    'fields[problem.code === "weights_unavailable" ? "weights" : "artifact"] =',
  ],
  "ledger/filters.js": ["problems[field] ="], // of the form
  "pages/new-job.js": ["state.values[name] ="], // of the form
};

// Where an object is merged into another: what is merged is written in the same module, member by member.
const MERGES = /Object\.assign\((?:this|state|dataset|row\(address\)|row), (?:change|\{)/;

test("the modules are there", () => assert.ok(MODULES.length > 40));

for (const name of MODULES) {
  const text = readFileSync(new URL(name, FOLDER), "utf8").replace(/^\s*\/\/.*$/gm, "");
  test(`${name} assigns by no key of an answer`, () => {
    for (const [what, way] of Object.entries(WAYS)) assert.doesNotMatch(text, way, what);
    const assigned = [...text.matchAll(/[\w.#]+\[(?!["'`\d])[^\]\n]+\]\s*(?:\?\?|\|\||[-+*/])?=(?![=>])/g)].map(String);
    assert.deepEqual(assigned, OWN_KEYS[name] ?? []);
    for (const line of text.split("\n")) if (line.includes("Object.assign(")) assert.match(line, MERGES);
  });
}

test("a document that names prototypes changes none", () => {
  const hostile = '{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}';
  const progress = JSON.parse(`${hostile}, "stage": "training", "fraction": 0.5, "detail": ""}`);
  const view = JSON.parse(
    `${hostile}, "phase": "done", "round": 1, "spec": {}, "rounds": [{"round": 1, "progress": {}}]}`,
  );
  view.rounds[0].progress = JSON.parse('{"__proto__": {"stage": "polluted"}}');
  const start = {
    view: null,
    pending: null,
    ledger: new Map(),
    rounds: new Map(),
    transactions: new Map(),
    nodes: new Map(),
  };
  let state = reduce(start, { name: "snapshot", data: view, at: 0 });
  state = reduce(state, { name: "progress", data: { round: 1, hospital: "__proto__", progress }, at: 1 });
  state = reduce(state, { name: "progress", data: { round: 1, hospital: "0xAda", progress }, at: 2 });
  state = reduce(state, { name: "job", data: JSON.parse(`${hostile}, "phase": "done"}`), at: 3 });
  const rows = hospitals(state, 1);
  assert.ok([...(rows.values?.() ?? rows)].length > 0);
  assert.equal({}.polluted, undefined);
  assert.equal(Object.prototype.polluted, undefined);
  for (const row of rows.values?.() ?? rows) assert.equal(Object.getPrototypeOf(row), Object.prototype);
});
