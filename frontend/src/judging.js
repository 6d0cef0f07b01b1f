// By what a job's models are judged: the figures that its classification names, the headline first. Pure.

import { classesOf, criticalOf, within } from "./classes.js";

const SHARED = { balanced_accuracy: "Balanced accuracy", accuracy: "Accuracy", macro_auc: "Mean AUC" };
const PER_CLASS = { sensitivity: "recall", auc: "AUC" };

/** The figure that is shown first, and that a target is of, of a job's `spec` or a model's version. */
export const headlineOf = (told) => told?.classification?.metrics?.[0] ?? "balanced_accuracy";

/** What is shown at a glance: what it is judged by, in that order, and then what is shown of every model. */
export function shownOf(told) {
  const critical = criticalOf(told);
  const named = told?.classification?.metrics ?? [];
  return [...new Set([...named, "balanced_accuracy", ...(critical ? [`sensitivity:${critical.code}`] : [])])];
}

/** A figure of scores; null where there are none, or a class has no pictures. */
export function figureOf(metric, scores, told) {
  if (!scores) return null;
  const [name, code] = metric.split(":");
  if (name === "sensitivity" && code === criticalOf(told)?.code) return scores.melanoma_recall ?? null;
  if (code !== undefined) return (name === "auc" ? scores.auc : scores.recall)[placeOf(code, told)] ?? null;
  if (name !== "macro_auc") return scores[name] ?? null;
  const areas = scores.auc.filter((area) => area != null);
  return areas.length ? areas.reduce((sum, area) => sum + area, 0) / areas.length : null;
}

/** "Balanced accuracy", "Melanoma recall". */
export function titleOf(metric, told) {
  const [name, code] = metric.split(":");
  if (code === undefined) return SHARED[name] ?? name;
  return `${classesOf(told)[placeOf(code, told)]?.name ?? code} ${PER_CLASS[name] ?? name}`;
}

/** The same where it stands for itself: "Melanoma found". */
export const foundOf = (metric, told) => titleOf(metric, told).replace(/ recall$/, " found");

/** The same within a sentence: "mean AUC". */
export const wordsOf = (metric, told) => within(titleOf(metric, told));

const placeOf = (code, told) => classesOf(told).findIndex((each) => each.code === code);
