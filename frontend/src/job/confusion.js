// A confusion matrix as a table that can be read: counts, each row's shares, recall by class. Pure.

import { CLASSES } from "../lesions.js";

/** Rows of the true classes in order, which are HAM10000's if no others are given: `{code, name, images, cells: [{count, share}], recall}`; recall null without images. */
export function rows(matrix, classes = CLASSES) {
  return matrix.map((counts, truth) => {
    const images = counts.reduce((sum, value) => sum + value, 0);
    return {
      code: classes[truth].code,
      name: classes[truth].name,
      images,
      cells: counts.map((value) => ({ count: value, share: images ? value / images : 0 })),
      recall: images ? counts[truth] / images : null,
    };
  });
}

/** The largest confusion that is not right, in a sentence; null where there is none. */
export function worst(matrix, classes = CLASSES) {
  let found = null;
  for (const [truth, row] of rows(matrix, classes).entries()) {
    for (const [guess, cell] of row.cells.entries()) {
      if (truth !== guess && cell.count > (found?.count ?? 0))
        found = { count: cell.count, truth, guess, of: row.images };
    }
  }
  if (!found) return null;
  const name = (index) => classes[index].name;
  return `Most often confused: ${found.count} of ${found.of} images of “${name(found.truth)}” were taken for “${name(found.guess)}”.`;
}

/** The newest round up to `number` that has a confusion matrix; null where none has. */
export const evaluatedRound = (view, number) =>
  view.rounds.findLast((round) => round.round <= number && round.confusion) ?? null;
