import assert from "node:assert/strict";
import { test } from "node:test";
import { evaluatedRound, rows, worst } from "../src/job/confusion.js";
import { charts, inUnit } from "../src/job/series.js";
import { ADA, BOB, round, scores, view } from "./job-fixtures.mjs";

const site = (hospital, name, value) => ({ hospital, site: name, scores: scores(value) });
const trained = view({
  rounds: [
    round(0, { pooled: scores(0.14), sites: [site(ADA, "North", 0.1)] }),
    round(1, {
      opened_at: "x",
      closed_at: "y",
      pooled: scores(0.4),
      sites: [site(ADA, "North", 0.3), site(BOB, "South", 0.5)],
      seconds_training: 3,
      bytes_moved: 2_000_000,
    }),
    round(2, { opened_at: "x" }),
  ],
});
const byId = (job) => Object.fromEntries(charts(job).map((chart) => [chart.id, chart]));

test("each chart has labels, values and a sentence of the same rounds", () => {
  const { accuracy, loss, seconds, bytes } = byId(trained);
  assert.deepEqual(accuracy.labels, ["start", "1"]);
  assert.deepEqual(accuracy.series[0].values, [0.14, 0.4]);
  assert.equal(
    accuracy.sentence,
    "Balanced accuracy went from 14.0 % at the start to 40.0 % after round 1; melanoma recall went from 7.0 % at the start to 20.0 % after round 1.",
  );
  assert.deepEqual(loss.series[0].values, [1.8599999999999999, 1.6]);
  assert.deepEqual([seconds.labels, bytes.series[0].values], [["1"], [2_000_000]]);
  assert.equal(bytes.sentence, "2.0 MB in 1 round.");
});

test("a target is a line of its own", () => {
  const job = { ...trained, spec: { ...trained.spec, target: 0.5 } };
  assert.deepEqual(byId(job).accuracy.series[2], { label: "Target", values: [0.5, 0.5], dashed: true });
});

test("hospitals keep their line where they were away", () => {
  const { spread } = byId(trained);
  assert.deepEqual(spread.series, [
    { label: "North", values: [0.1, 0.3] },
    { label: "South", values: [null, 0.5] },
  ]);
  assert.equal(spread.sentence, "After round 1, from 30.0 % to 50.0 % at 2 hospitals.");
});

test("many hospitals are drawn as best, median and worst, and all stand in the table", () => {
  const sites = Array.from({ length: 9 }, (_, index) => site(`0x${index}`, `Site ${index}`, index / 10));
  const { spread } = byId(view({ rounds: [round(0, { pooled: scores(0.4), sites })] }));
  assert.deepEqual(
    spread.series.map((line) => line.values),
    [[0.8], [0.4], [0]],
  );
  assert.equal(spread.columns.length, 9);
});

test("a job without any evaluation has empty charts that say so", () => {
  for (const chart of charts(view())) {
    assert.deepEqual(chart.labels, []);
    assert.match(chart.sentence, /^No (model was evaluated|round was closed) yet\.$/);
  }
});

test("values are shown in their unit", () => {
  assert.deepEqual(
    [inUnit("share", 0.5), inUnit("plain", 1.23456), inUnit("seconds", 61), inUnit("bytes", 1e6)],
    ["50.0 %", "1.235", "1 min 1 s", "1.0 MB"],
  );
  assert.equal(inUnit("share", null), "–");
});

const matrix = Array.from({ length: 7 }, () => Array(7).fill(0));
matrix[4] = [0, 0, 1, 0, 6, 3, 0];
matrix[5] = [0, 0, 0, 0, 2, 8, 0];

test("a confusion matrix has each row's shares and recall", () => {
  const [akiec, , , , mel] = rows(matrix);
  assert.equal(akiec.recall, null);
  assert.deepEqual([mel.images, mel.recall, mel.cells[5].share], [10, 0.6, 0.3]);
  assert.equal(worst(matrix), "Most often confused: 3 of 10 images of “Melanoma” were taken for “Melanocytic nevus”.");
  assert.equal(worst(Array.from({ length: 7 }, () => Array(7).fill(0))), null);
});

test("the matrix shown is the newest up to the chosen round", () => {
  const job = view({ rounds: [round(0, { confusion: matrix }), round(1, { confusion: matrix }), round(2)] });
  assert.equal(evaluatedRound(job, 2).round, 1);
  assert.equal(evaluatedRound(job, 0).round, 0);
  assert.equal(evaluatedRound(view(), 1), null);
});
