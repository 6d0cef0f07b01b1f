// Breaking text into lines where nothing does it for us: on a canvas. Pure.

/** Lines of `text` no wider than `width` by `measure(text)`; a word too wide for a line is broken within. */
export function lines(text, width, measure) {
  const out = [];
  let line = "";
  for (const word of text
    .split(/\s+/)
    .filter(Boolean)
    .flatMap((word) => pieces(word, width, measure))) {
    const longer = line ? `${line} ${word}` : word;
    if (line && measure(longer) > width) {
      out.push(line);
      line = word;
    } else {
      line = longer;
    }
  }
  return line ? [...out, line] : out;
}

function pieces(word, width, measure) {
  if (measure(word) <= width) return [word];
  const out = [];
  let piece = "";
  for (const letter of word) {
    if (piece && measure(piece + letter) > width) {
      out.push(piece);
      piece = "";
    }
    piece += letter;
  }
  return [...out, piece];
}
