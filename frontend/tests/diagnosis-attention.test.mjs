// Maps of attention: scaled up, coloured, and in words.

import assert from "node:assert/strict";
import { test } from "node:test";
import { colour, coloured, inWords, opacity, upscaled, whereabouts } from "../src/diagnosis/attention.js";

const grid = (side, value) =>
  Array.from({ length: side }, (_, y) => Array.from({ length: side }, (_, x) => value(x, y)));

test("scaling up keeps a constant constant, and every value between its neighbours'", () => {
  for (const value of upscaled(
    grid(7, () => 0.25),
    50,
    31,
  ))
    assert.equal(value, 0.25);
  const noise = grid(7, (x, y) => ((x * 7919 + y * 104729) % 97) / 97);
  const flat = noise.flat();
  for (const value of upscaled(noise, 64, 64)) {
    assert.ok(value >= Math.min(...flat) - 1e-6 && value <= Math.max(...flat) + 1e-6);
  }
});

test("scaling up to the same size changes nothing, and to an odd multiple keeps the middles", () => {
  const noise = grid(5, (x, y) => ((x * 31 + y * 17) % 11) / 10);
  const same = upscaled(noise, 5, 5);
  const larger = upscaled(noise, 15, 25);
  noise.forEach((row, y) => {
    row.forEach((value, x) => {
      assert.ok(Math.abs(same[y * 5 + x] - value) < 1e-6);
      assert.ok(Math.abs(larger[(y * 5 + 2) * 15 + x * 3 + 1] - value) < 1e-6);
    });
  });
});

test("a slope stays a slope between the middles of the outermost cells, and level beyond them", () => {
  const across = upscaled([[0, 1]], 8, 1);
  assert.deepEqual([...across], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]);
  const down = upscaled([[0], [1]], 1, 8);
  assert.deepEqual([...down], [...across]);
});

test("rows run from the top, columns from the left, and a grid need not be square", () => {
  const map = upscaled(
    [
      [0, 0, 1],
      [0, 0, 0],
    ],
    30,
    20,
  );
  assert.equal(map[29], 1);
  assert.equal(map[0], 0);
  assert.equal(map[19 * 30 + 29], 0);
});

test("a single cell fills everything", () => {
  assert.deepEqual([...upscaled([[0.5]], 3, 2)], Array(6).fill(0.5));
});

test("colours run from violet to yellow, ever brighter, and are held at the ends", () => {
  assert.deepEqual(
    [colour(0), colour(0.5), colour(1)],
    [
      [68, 1, 84],
      [33, 145, 140],
      [253, 231, 37],
    ],
  );
  assert.deepEqual([colour(-1), colour(2)], [colour(0), colour(1)]);
  const luminance = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  for (let at = 1; at <= 200; at += 1) {
    assert.ok(luminance(colour(at / 200)) > luminance(colour((at - 1) / 200)) - 0.5, `brighter at ${at}`);
  }
});

test("what drew no attention is clear, what drew most is opaque", () => {
  assert.deepEqual([opacity(-1), opacity(0), opacity(1), opacity(3)], [0, 0, 1, 1]);
  for (let at = 1; at <= 100; at += 1) assert.ok(opacity(at / 100) > opacity((at - 1) / 100));
  const bytes = coloured([[0, 1]], 2, 1);
  assert.deepEqual([...bytes], [68, 1, 84, 0, 253, 231, 37, 255]);
});

const spot = (cx, cy) => grid(7, (x, y) => Math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 1.5));

test("words: each of the nine parts, by a spot in its middle", () => {
  const words = [
    ...["upper left", "top", "upper right"],
    ...["left", "centre", "right"],
    ...["lower left", "bottom", "lower right"],
  ];
  words.forEach((word, index) => {
    const at = (third) => third * 2.34 + 0.66;
    assert.equal(whereabouts(spot(at(index % 3), at(Math.floor(index / 3)))), word);
  });
});

test("words: two parts, everywhere, nowhere", () => {
  const both = grid(6, (x, y) => (y < 2 && (x < 2 || x > 3) ? 1 : 0));
  assert.equal(whereabouts(both), "upper left and upper right");
  assert.equal(whereabouts(grid(7, () => 0.4)), "all over the picture");
  assert.equal(whereabouts(grid(7, () => 0)), "");
  assert.equal(whereabouts([[1]]), "all over the picture");
  assert.equal(
    inWords(
      grid(7, () => 0),
      "melanoma",
    ),
    "Nothing in the picture spoke for melanoma.",
  );
  assert.equal(inWords([[1]], "melanoma"), "For melanoma the network looked all over the picture.");
  assert.equal(inWords(spot(3, 3), "melanoma"), "For melanoma the network looked mostly here: centre.");
});

test("words: turning a map about its middle swaps left and right", () => {
  for (let x = 0; x < 7; x += 0.5) {
    const one = whereabouts(spot(x, 3));
    const other = whereabouts(spot(6 - x, 3));
    const swapped = one.replaceAll("left", "L").replaceAll("right", "left").replaceAll("L", "right");
    assert.deepEqual(swapped.split(/, | and /).sort(), other.split(/, | and /).sort());
  }
});
