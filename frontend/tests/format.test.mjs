// Numbers, times and digests as people read them.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  architecture,
  brief,
  bytes,
  count,
  decimal,
  duration,
  encodingSentence,
  moment,
  percent,
  short,
  strategySentence,
} from "../src/format.js";

const SIZES = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };
const SPANS = { ms: 0.001, s: 1, min: 60, h: 3600, d: 86400 };

test("bytes: edges", () => {
  const told = [0, 1, 999, 1000, 99_499, 99_500, 999_499, 999_500, 9_512_345, 1e12, 5e15].map(bytes);
  const expected = [
    "0 B",
    "1 B",
    "999 B",
    "1.0 kB",
    "99.5 kB",
    "100 kB",
    "999 kB",
    "1.0 MB",
    "9.5 MB",
    "1.0 TB",
    "5000 TB",
  ];
  assert.deepEqual(told, expected);
});

test("bytes: never off by more than a twentieth of a unit in three figures, never four figures below TB", () => {
  for (const value of spread(1e13)) {
    const [figure, unit] = bytes(Math.round(value)).split(" ");
    const back = Number(figure) * SIZES[unit];
    assert.ok(Math.abs(back - value) <= Math.max(0.5, back * 0.051), `${value} → ${figure} ${unit}`);
    if (unit !== "TB") assert.ok(Number(figure) < 1000, `${value} → ${figure} ${unit}`);
  }
});

test("duration: edges", () => {
  const told = [
    0, 0.0421, 0.9994, 0.9995, 7.31, 9.949, 9.95, 59.4, 59.6, 60, 135, 3599.6, 3600, 8100, 86_399.6, 200_000,
  ].map(duration);
  assert.deepEqual(told, [
    ...["0 ms", "42 ms", "999 ms", "1.0 s", "7.3 s", "9.9 s", "10 s", "59 s", "1 min", "1 min", "2 min 15 s"],
    ...["1 h", "1 h", "2 h 15 min", "1 d", "2 d 7 h"],
  ]);
  assert.equal(duration(null), "–");
});

test("duration: what is read differs from what was by less than the smallest unit shown", () => {
  for (const value of spread(1e7)) {
    const parts = duration(value).match(/[\d.]+ [a-z]+/g);
    const back = parts.reduce((sum, part) => sum + Number(part.split(" ")[0]) * SPANS[part.split(" ")[1]], 0);
    const largest = SPANS[parts[0].split(" ")[1]];
    const finest = { 0.001: 0.001, 1: 0.5, 60: 1, 3600: 60, 86400: 3600 }[largest];
    assert.ok(Math.abs(back - value) <= finest, `${value} → ${duration(value)}`);
  }
});

test("shares, decimals and what is not known", () => {
  assert.equal(percent(0.7312), "73.1 %");
  assert.equal(percent(1, 0), "100 %");
  assert.equal(decimal(0.7312), "0.731");
  assert.deepEqual(
    [percent(null), percent(undefined), decimal(null), moment(null), short(null), brief(null)],
    Array(6).fill("–"),
  );
  assert.equal(percent(0), "0.0 %");
  assert.equal(count(1_234_567), "1,234,567");
});

test("addresses and digests keep both ends, and short texts stay whole", () => {
  assert.equal(short(`0x1234${"0".repeat(32)}abcd`), "0x1234…abcd");
  assert.equal(short("0123456789abc"), "0123456789abc");
  assert.equal(short("0123456789abcd"), "012345…abcd");
  assert.equal(brief("0123456789abcdef"), "01234567");
});

test("architectures by their own names, unknown ones as they are", () => {
  assert.equal(architecture("mobilenet_v2"), "MobileNetV2");
  assert.equal(architecture("vit_b_16"), "vit_b_16");
  assert.equal(architecture("timm:resnet10t"), "resnet10t (timm)");
});

/** Values over all magnitudes up to `most`, the same each time. */
function* spread(most) {
  for (let exponent = -3; 10 ** exponent < most; exponent += 0.013) yield 10 ** exponent;
}

test("an encoding in a sentence, also one that this page does not know", () => {
  assert.equal(encodingSentence(), "all of each update, as it is");
  assert.equal(
    encodingSentence({ name: "int8", share: null, zstd: true }),
    "each update's difference in eight bits, compressed",
  );
  assert.match(encodingSentence({ name: "topk", share: 0.01, zstd: false }), /largest 1 % of/);
  assert.equal(encodingSentence({ name: "of-tomorrow" }), "of-tomorrow");
});

test("a strategy is said in words, one of tomorrow by its name", () => {
  assert.equal(strategySentence({ name: "fedavg", proximal_mu: 0.01 }), "FedAvg");
  assert.equal(strategySentence({ name: "fedprox", proximal_mu: 0.1 }), "FedProx, mu 0.1");
  assert.match(strategySentence({ name: "fedbuff", proximal_mu: 0.01 }), /^FedBuff/);
  assert.equal(strategySentence({ name: "of-tomorrow" }), "of-tomorrow");
  assert.equal(strategySentence({ name: "constructor" }), "constructor");
  assert.equal(
    strategySentence({ name: "median", mixing: "nearest_neighbours", hostile: 0.3 }),
    "median of each weight, of means of nearest updates, 30 % may be hostile",
  );
  assert.match(strategySentence({ name: "qfedavg", q: 2 }), /^q-FedAvg, q 2/);
});
