// What a job, or a model, tells apart: its own classes where it names any, else the lesions of HAM10000. Pure.

import { CLASSES, MELANOMA } from "./lesions.js";

/** The classes in the order of every vector and matrix, `{code, name}` each, of a job's `spec` or a model's version. */
export const classesOf = (told) => told?.classification?.classes ?? CLASSES;

/** The class that must not be missed; null where none is. */
export function criticalOf(told) {
  const { classification } = told ?? {};
  if (!classification) return CLASSES[MELANOMA];
  return classification.classes.find(({ code }) => code === classification.critical) ?? null;
}

/** "Melanoma" → "melanoma", as within a sentence. */
export const within = (name) => name[0].toLowerCase() + name.slice(1);

/** What is held out, in a word: lesions where they are, else pictures. */
export const heldOutOf = (told) => (told?.classification ? "pictures" : "lesions");

const WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/** A number of classes as a word, where it has a short one. */
export const inWords = (number) => WORDS[number - 2] ?? String(number);
