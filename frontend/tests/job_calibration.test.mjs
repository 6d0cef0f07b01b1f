import assert from "node:assert/strict";
import { test } from "node:test";
import { calibratedRound, criticalSentence, findings, reliability } from "../src/job/calibration.js";
import { round, view } from "./job-fixtures.mjs";

const bins = (changes) => Array.from({ length: 15 }, (_, at) => changes[at] ?? 0);
const critical = {
  code: "mel",
  threshold: 0.2,
  wanted: 0.9,
  sensitivity: 0.88,
  specificity: 0.7,
  positives: 50,
  negatives: 400,
};
const use = (changes = {}) => ({
  flips: false,
  images: 450,
  temperature: 1.5,
  error_before: 0.12,
  error_after: 0.03,
  loss_before: 1,
  loss_after: 0.9,
  critical,
  unusual: { threshold: -0.3, share: 0.011 },
  ...changes,
});
const calibrated = (changes) => ({
  use: use(changes),
  before: { images: bins({ 7: 50, 14: 400 }), correct: bins({ 7: 20, 14: 200 }), confidence: bins({ 7: 25, 14: 380 }) },
  after: { images: bins({ 7: 450 }), correct: bins({ 7: 220 }), confidence: bins({ 7: 225 }) },
});
const job = (changes) => view({ rounds: [round(0), round(2, { calibrated: calibrated(changes) }), round(3)] });
const shown = (changes) => findings(job(changes), job(changes).rounds[1]);

test("the newest calibrated round up to the one that is looked at", () => {
  assert.equal(calibratedRound(job(), 3).round, 2);
  assert.equal(calibratedRound(job(), 1), null);
  assert.equal(calibratedRound(view(), 3), null);
});

test("a diagram of how often what is said is true, with gaps where nothing was said", () => {
  const { labels, series, columns, sentence } = reliability(job(), job().rounds[1]);
  assert.equal(labels.length, 15);
  assert.deepEqual([labels[0], labels[7], labels[14]], ["0–7 %", "47–53 %", "93–100 %"]);
  const [honest, before, after] = series;
  assert.ok(honest.dashed);
  assert.equal(honest.values[7], 0.5);
  assert.deepEqual([before.values[0], before.values[7], before.values[14]], [null, 0.4, 0.5]);
  assert.deepEqual([after.values[7], after.values[14]], [220 / 450, null]);
  assert.deepEqual(
    columns.map(({ values }) => values),
    [before.values, after.values],
  );
  assert.match(sentence, /off by 12\.0 % .* by 3\.0 % with the temperature/);
});

test("what was found, in sentences", () => {
  assert.deepEqual(shown(), [
    "450 held-out pictures give a temperature of 1.500: the network was too sure of itself, and its shares are drawn together.",
    "The threshold for melanoma finds 88.0 % of 50 held-out pictures of it, and warns of 30.0 % of 400 that show none.",
    "A picture is told to be unusual where the network finds it odder than all but a few: 1.1 % of held-out pictures were.",
  ]);
  assert.match(shown({ temperature: 0.8 })[0], /too hesitant/);
  assert.match(shown({ temperature: 1.01 })[0], /nearly what they are/);
  assert.equal(shown({ critical: null, unusual: null }).length, 1);
});

test("a threshold without pictures of others spares nobody", () => {
  assert.equal(
    criticalSentence("melanoma", { ...critical, specificity: null, negatives: 0 }),
    "The threshold for melanoma finds 88.0 % of 50 held-out pictures of it.",
  );
});
