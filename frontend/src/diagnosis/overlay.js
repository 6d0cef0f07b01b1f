// A map of attention as a canvas, which the page lays over the picture and the report draws on it.

import { coloured } from "./attention.js";

const SIDE = 256; // stretched to the picture's shape, as the picture was squeezed to a square for the model

/** Paint a grid on a canvas, whose size becomes `SIDE` squared. */
export function paintMap(canvas, grid) {
  canvas.width = SIDE;
  canvas.height = SIDE;
  canvas.getContext("2d").putImageData(new ImageData(coloured(grid, SIDE, SIDE), SIDE, SIDE), 0, 0);
  return canvas;
}
