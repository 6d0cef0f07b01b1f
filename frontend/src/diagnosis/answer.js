// What the model answered, as a person should read it: sorted, doubts said in words, and how good it has proved. Pure.

import { within } from "../classes.js";
import { count, percent } from "../format.js";
import { CLASSES } from "../lesions.js";

export const NOTICE = "Research software, no medical device: not for diagnosis.";

const UNSURE = 0.5;
const TIE = 0.1;
const WORRY = 0.2;
const FEW = 30;
const WORRYING = new Set(["malignant", "pre-malignant"]);

/**
 * The classes with their probabilities, most probable first: `{code, name, kind, what, index, probability}`. What is known
 * of HAM10000's lesions is added where the answer is of them; of others `kind` and `what` are empty.
 */
export function ranked(probabilities) {
  const of = new Map(probabilities.map((each) => [each.code, each]));
  const lesions = of.size === CLASSES.length && CLASSES.every(({ code }) => of.has(code));
  const classes = lesions
    ? CLASSES.map((known, index) => ({ ...known, index, probability: of.get(known.code).probability }))
    : probabilities.map(({ code, name, probability }, index) => ({
        code,
        name,
        kind: "",
        what: "",
        index,
        probability,
      }));
  return classes.sort((one, other) => other.probability - one.probability);
}

/** Sentences about how far the answer is from clear; none where it is. */
export function doubts(classes) {
  const [first, second] = classes;
  const sentences = [];
  if (first.probability - second.probability < TIE) {
    sentences.push(`${first.name} and ${within(second.name)} are nearly tied: the model does not decide between them.`);
  }
  if (first.probability < UNSURE) {
    sentences.push("No class reaches one half: the model is unsure about this picture.");
  }
  const worrying = classes
    .filter(({ kind }) => WORRYING.has(kind))
    .reduce((sum, { probability }) => sum + probability, 0);
  if (!WORRYING.has(first.kind) && worrying >= WORRY) {
    sentences.push(
      `The most probable class is benign, and yet malignant and pre-malignant ones together get ${percent(worrying)}.`,
    );
  }
  return sentences;
}

/** What the model says of a picture that may be none of its kind, in a sentence; null where nothing is odd about it. */
export const oddity = ({ unusual }) => (unusual?.beyond ? unusual.notice : null);

/** On which side of its threshold the class lies that must not be missed, in a sentence; null where there is none. */
export function warning({ critical }, classes) {
  if (!critical) return null;
  const name = within(classes.find(({ code }) => code === critical.code)?.name ?? critical.code);
  const found = percent(critical.sensitivity, 0);
  if (!critical.above) {
    return `No warning of ${name}: on held-out pictures this rule found ${found} of those that show it, and missed ${percent(1 - critical.sensitivity, 0)}.`;
  }
  const others =
    critical.specificity === null
      ? ""
      : ` It also warned of ${percent(1 - critical.specificity, 0)} of those that show none.`;
  return `Warning of ${name}: this picture is above the threshold that found ${found} of held-out pictures of it.${others}`;
}

/**
 * How many held-out pictures of each class a model recognised: `[{found, of}]` in the order of its classes, from the
 * confusion matrix of the round that made it. Null where that round was not evaluated.
 */
export function recognised(job, digest) {
  const round = job?.rounds.filter(({ model, pooled, confusion }) => model === digest && pooled && confusion).at(-1);
  if (!round) return null;
  return round.confusion.map((row, index) => ({ found: row[index], of: row.reduce((sum, n) => sum + n, 0) }));
}

/** How well a model recognises a class, in a sentence; `measured` is that class's `{found, of}`, if it is known. */
export function recallSentence({ name }, measured) {
  if (!measured) return "How well this model recognises that class was not measured.";
  const { found, of } = measured;
  if (of === 0) return `No held-out picture shows ${within(name)}: how well this model recognises it is unknown.`;
  const few = of < FEW ? " So few say little." : "";
  if (of === 1)
    return `Of the one held-out picture of ${within(name)} this model recognised ${found ? "it" : "none"}.${few}`;
  const share = of === 100 ? "" : ` (${percent(found / of, 0)})`;
  return `Of ${count(of)} held-out pictures of ${within(name)} this model recognised ${count(found)}${share}.${few}`;
}

/** The same beside a probability: "recognised 43 of 100". */
export const recallNote = (measured) =>
  measured?.of ? `recognised ${count(measured.found)} of ${count(measured.of)} held out` : "";
