// Jobs and models that tell other classes apart than HAM10000's are shown in their own words.

import assert from "node:assert/strict";
import { test } from "node:test";

import { classesOf, criticalOf, heldOutOf, inWords } from "../src/classes.js";
import { doubts, ranked, recallSentence } from "../src/diagnosis/answer.js";
import { rows, worst } from "../src/job/confusion.js";
import { charts } from "../src/job/series.js";
import { CLASSES, MELANOMA } from "../src/lesions.js";

const classification = {
  name: "Pneumonia on chest radiographs",
  classes: [
    { code: "normal", name: "Normal" },
    { code: "pneumonia", name: "Pneumonia" },
  ],
  critical: "pneumonia",
};

test("what names no classification is of lesions", () => {
  for (const told of [undefined, null, {}, { architecture: "resnet18" }]) {
    assert.equal(classesOf(told), CLASSES);
    assert.equal(criticalOf(told), CLASSES[MELANOMA]);
    assert.equal(heldOutOf(told), "lesions");
  }
});

test("classes and the critical one are those that are named", () => {
  assert.deepEqual(classesOf({ classification }), classification.classes);
  assert.deepEqual(criticalOf({ classification }), classification.classes[1]);
  assert.equal(criticalOf({ classification: { ...classification, critical: null } }), null);
  assert.deepEqual([2, 7, 10, 11].map(inWords), ["two", "seven", "ten", "11"]);
});

test("a confusion matrix has the job's classes", () => {
  const matrix = [
    [8, 2],
    [3, 7],
  ];
  assert.deepEqual(
    rows(matrix, classification.classes).map(({ code, recall }) => [code, recall]),
    [
      ["normal", 0.8],
      ["pneumonia", 0.7],
    ],
  );
  assert.match(worst(matrix, classification.classes), /3 of 10 images of “Pneumonia” were taken for “Normal”/);
});

test("an answer is in the model's classes and its words", () => {
  const classes = ranked([
    { code: "normal", name: "Normal", probability: 0.2 },
    { code: "pneumonia", name: "Pneumonia", probability: 0.8 },
  ]);
  assert.deepEqual(
    classes.map(({ code, name, index, kind }) => [code, name, index, kind]),
    [
      ["pneumonia", "Pneumonia", 1, ""],
      ["normal", "Normal", 0, ""],
    ],
  );
  assert.deepEqual(doubts(classes), []);
  assert.match(recallSentence(classes[0], { found: 3, of: 40 }), /40 held-out pictures of pneumonia/);
});

test("charts speak of the class that must not be missed, where one is", () => {
  const pooled = { balanced_accuracy: 0.5, melanoma_recall: 0.25, loss: 1 };
  const round = { round: 0, pooled, sites: [], closed_at: null };
  const chart = (told) => charts({ spec: { target: null, classification: told }, rounds: [round] })[0];
  assert.equal(chart(classification).title, "Balanced accuracy and pneumonia recall");
  assert.match(chart(classification).what, /held-out pictures .* the two classes' recalls/);
  assert.match(chart(classification).sentence, /; pneumonia recall 25/);
  const without = chart({ ...classification, critical: null });
  assert.equal(without.title, "Balanced accuracy");
  assert.deepEqual(
    without.series.map(({ label }) => label),
    ["Balanced accuracy"],
  );
  assert.equal(chart(undefined).title, "Balanced accuracy and melanoma recall");
});
