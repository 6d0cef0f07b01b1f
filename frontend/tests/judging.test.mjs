import assert from "node:assert/strict";
import { test } from "node:test";
import { charts } from "../src/job/series.js";
import { figureOf, foundOf, headlineOf, shownOf, titleOf, wordsOf } from "../src/judging.js";
import { ADA, BOB, round, scores, view } from "./job-fixtures.mjs";

const chest = (metrics) => ({
  target: null,
  classification: {
    name: "chest",
    classes: [
      { code: "normal", name: "Normal" },
      { code: "pneumonia", name: "Pneumonia" },
    ],
    critical: "pneumonia",
    ...(metrics ? { metrics } : {}),
  },
});
const found = (changes = {}) => ({
  accuracy: 0.9,
  balanced_accuracy: 0.8,
  loss: 1,
  recall: [0.7, 0.9],
  melanoma_recall: 0.9,
  auc: [0.6, 0.8],
  ...changes,
});

test("who names no metrics is judged by balanced accuracy, and shown the critical class's recall", () => {
  for (const told of [undefined, {}, view().spec]) {
    assert.equal(headlineOf(told), "balanced_accuracy");
    assert.deepEqual(shownOf(told), ["balanced_accuracy", "sensitivity:mel"]);
  }
  assert.deepEqual(shownOf(chest()), ["balanced_accuracy", "sensitivity:pneumonia"]);
  const judged = ["sensitivity:pneumonia", "accuracy"];
  assert.deepEqual(shownOf(chest(judged)), [...judged, "balanced_accuracy"]);
});

test("each figure has its value and its words", () => {
  const told = chest();
  const values = {
    balanced_accuracy: 0.8,
    accuracy: 0.9,
    macro_auc: 0.7,
    "sensitivity:normal": 0.7,
    "auc:pneumonia": 0.8,
  };
  for (const [metric, value] of Object.entries(values)) {
    assert.ok(Math.abs(figureOf(metric, found(), told) - value) < 1e-12, metric);
    assert.equal(figureOf(metric, null, told), null);
  }
  assert.equal(figureOf("macro_auc", found({ auc: [null, 0.8] }), told), 0.8);
  assert.equal(figureOf("macro_auc", found({ auc: [null, null] }), told), null);
  assert.equal(titleOf("auc:pneumonia", told), "Pneumonia AUC");
  assert.equal(foundOf("sensitivity:pneumonia", told), "Pneumonia found");
  assert.equal(wordsOf("macro_auc", told), "mean AUC");
});

test("charts are of what a job is judged by, hospitals' of the first", () => {
  const sites = [
    { hospital: ADA, site: "east", scores: found({ auc: [0.5, 0.7] }) },
    { hospital: BOB, site: "west", scores: found({ auc: [null, null] }) },
  ];
  const rounds = [round(0, { pooled: found(), sites })];
  const [judged, spread] = charts({ ...view(), spec: chest(["macro_auc", "accuracy"]), rounds });
  assert.equal(judged.title, "Mean AUC, accuracy, balanced accuracy and pneumonia recall");
  assert.match(judged.what, /balanced accuracy is .*; mean AUC is that of the two classes/);
  assert.deepEqual(
    judged.series.map(({ label }) => label),
    ["Mean AUC", "Accuracy", "Balanced accuracy", "Pneumonia recall"],
  );
  assert.equal(spread.title, "Mean AUC by hospital");
  assert.deepEqual(
    spread.columns.map(({ values }) => values),
    [[0.6], [null]],
  );
  assert.match(spread.sentence, /from 60.0 % to 60.0 % at 1 hospital\./);
  assert.equal(charts({ ...view(), rounds: [round(0, { pooled: scores(0.5) })] })[0].series[1].values[0], 0.25);
});
