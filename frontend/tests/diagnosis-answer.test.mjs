// The answer as a person reads it: order, doubts, and what a model has proved to recognise.

import assert from "node:assert/strict";
import { test } from "node:test";
import { within } from "../src/classes.js";
import { doubts, oddity, ranked, recallNote, recallSentence, recognised, warning } from "../src/diagnosis/answer.js";
import { CLASSES } from "../src/lesions.js";

const shares = (given) => CLASSES.map(({ code }) => ({ code, name: code, probability: given[code] ?? 0 }));
const doubtsOf = (given) => doubts(ranked(shares(given)));

test("most probable first, each with its own name and place in the vectors", () => {
  const classes = ranked(shares({ nv: 0.6, mel: 0.3, bcc: 0.1 }).reverse());
  assert.deepEqual(
    classes.slice(0, 3).map(({ code, name, index, probability }) => [code, name, index, probability]),
    [
      ["nv", "Melanocytic nevus", 5, 0.6],
      ["mel", "Melanoma", 4, 0.3],
      ["bcc", "Basal cell carcinoma", 1, 0.1],
    ],
  );
  assert.equal(classes.length, 7);
});

test("a clear answer raises no doubt", () => {
  assert.deepEqual(doubtsOf({ mel: 0.9, nv: 0.1 }), []);
  assert.deepEqual(doubtsOf({ nv: 0.81, mel: 0.19 }), []);
});

test("near-ties, low shares and malignant remainders are said in words", () => {
  const tie = doubtsOf({ nv: 0.52, bkl: 0.48 });
  assert.deepEqual(tie, [
    "Melanocytic nevus and benign keratosis are nearly tied: the model does not decide between them.",
  ]);
  const unsure = doubtsOf({ mel: 0.45, nv: 0.2, bkl: 0.2, df: 0.15 });
  assert.deepEqual(unsure, ["No class reaches one half: the model is unsure about this picture."]);
  const worrying = doubtsOf({ nv: 0.7, mel: 0.15, bcc: 0.1, akiec: 0.05 });
  assert.equal(worrying.length, 1);
  assert.match(
    worrying[0],
    /most probable class is benign, and yet malignant and pre-malignant ones together get 30.0 %/,
  );
  assert.equal(doubtsOf(Object.fromEntries(CLASSES.map(({ code }) => [code, 1 / 7]))).length >= 2, true);
});

const confusion = CLASSES.map((_, t) => CLASSES.map((_, p) => (t === p ? 43 : t === 4 && p === 5 ? 57 : 0)));
const rounds = [
  { round: 0, model: "a", pooled: {}, confusion: CLASSES.map(() => CLASSES.map(() => 1)) },
  { round: 1, model: "b", pooled: {}, confusion },
  { round: 2, model: "c", pooled: null, confusion: null },
];

test("recall is of the round that made the model, and of no other", () => {
  assert.deepEqual(recognised({ rounds }, "b")[4], { found: 43, of: 100 });
  assert.deepEqual(recognised({ rounds }, "b")[0], { found: 43, of: 43 });
  assert.deepEqual(recognised({ rounds }, "a")[0], { found: 1, of: 7 });
  assert.deepEqual(
    [recognised({ rounds }, "c"), recognised({ rounds }, "z"), recognised(null, "b")],
    [null, null, null],
  );
});

test("recall in a sentence", () => {
  const melanoma = CLASSES[4];
  const said = (found, of) => recallSentence(melanoma, { found, of });
  assert.equal(said(43, 100), "Of 100 held-out pictures of melanoma this model recognised 43.");
  assert.equal(said(481, 1112), "Of 1,112 held-out pictures of melanoma this model recognised 481 (43 %).");
  assert.equal(said(2, 4), "Of 4 held-out pictures of melanoma this model recognised 2 (50 %). So few say little.");
  assert.equal(said(1, 1), "Of the one held-out picture of melanoma this model recognised it. So few say little.");
  assert.match(said(0, 0), /^No held-out picture shows melanoma/);
  assert.match(recallSentence(melanoma, undefined), /was not measured/);
  assert.equal(recallNote({ found: 1, of: 2 }), "recognised 1 of 2 held out");
  assert.deepEqual([recallNote({ found: 0, of: 0 }), recallNote(undefined)], ["", ""]);
  assert.equal(within("Actinic keratosis / Bowen's disease"), "actinic keratosis / Bowen's disease");
});

test("a warning says on which side of its threshold a picture is, and what that rule is worth", () => {
  const said = (critical) => warning({ critical }, ranked(shares({ nv: 1 })));
  const above = { code: "mel", above: true, sensitivity: 0.91, specificity: 0.76 };
  assert.equal(
    said(above),
    "Warning of melanoma: this picture is above the threshold that found 91 % of held-out pictures of it. It also warned of 24 % of those that show none.",
  );
  assert.match(said({ ...above, specificity: null }), /pictures of it\.$/);
  assert.equal(
    said({ ...above, above: false }),
    "No warning of melanoma: on held-out pictures this rule found 91 % of those that show it, and missed 9 %.",
  );
  assert.equal(warning({}, ranked(shares({ nv: 1 }))), null);
});

test("a picture is called odd where the model's service says so, and a usual one is not", () => {
  assert.equal(
    oddity({ unusual: { beyond: true, notice: "This may be no dermoscopic picture." } }),
    "This may be no dermoscopic picture.",
  );
  assert.deepEqual([oddity({ unusual: { beyond: false, notice: null } }), oddity({})], [null, null]);
});
