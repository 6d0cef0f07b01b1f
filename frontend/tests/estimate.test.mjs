import assert from "node:assert/strict";
import { test } from "node:test";
import { ADAPTER_BYTES, estimate, MODEL_BYTES, quorumSentence } from "../src/job/estimate.js";

test("downloads, uploads and transactions of a job", () => {
  const sum = estimate({ modelBytes: 10, hospitals: 4, rounds: 3 });
  assert.deepEqual([sum.downloads, sum.uploads], [16, 12]);
  assert.deepEqual([sum.bytesDown, sum.bytesUp, sum.bytes, sum.bytesEach], [160, 120, 280, 70]);
  assert.equal(sum.transactions, 3 * (2 + 4) + 1);
});

test("under a Merkle root a round's updates share one transaction", () => {
  const sum = (hospitals) => estimate({ modelBytes: 10, hospitals, rounds: 3, recording: "merkle" });
  assert.equal(sum(1000).transactions, 3 * 3 + 1);
  assert.deepEqual({ ...sum(4), transactions: 19 }, estimate({ modelBytes: 10, hospitals: 4, rounds: 3 }));
});

test("an encoding makes uploads smaller, and downloads not", () => {
  const sum = estimate({ modelBytes: 1000, hospitals: 4, rounds: 3, encoding: "int8+zstd" });
  assert.deepEqual([sum.bytesDown, sum.bytesUp, sum.bytes, sum.bytesEach], [16_000, 3000, 19_000, 4750]);
});

test("what an adapter goes over is downloaded once by each hospital", () => {
  const sum = estimate({ modelBytes: 10, trunkBytes: 1000, hospitals: 4, rounds: 3 });
  assert.deepEqual([sum.downloads, sum.uploads], [20, 12]);
  assert.deepEqual([sum.bytesDown, sum.bytesUp, sum.bytes], [4160, 120, 4280]);
});

test("an adapter is smaller than its network, and a larger rank is larger", () => {
  assert.deepEqual(Object.keys(ADAPTER_BYTES).sort(), Object.keys(MODEL_BYTES).sort());
  for (const [name, sizes] of Object.entries(ADAPTER_BYTES)) {
    const ranks = Object.values(sizes);
    assert.deepEqual(
      ranks,
      [...ranks].sort((a, b) => a - b),
    );
    assert.ok(ranks.at(-1) < MODEL_BYTES[name] / 4);
  }
});

test("one hospital, one round", () => {
  const sum = estimate({ modelBytes: MODEL_BYTES.resnet50, hospitals: 1, rounds: 1 });
  assert.equal(sum.bytes, 3 * MODEL_BYTES.resnet50);
  assert.equal(sum.transactions, 4);
});

test("nobody there costs the ledger's rounds and no bytes", () => {
  const sum = estimate({ modelBytes: 10, hospitals: 0, rounds: 2 });
  assert.deepEqual([sum.bytes, sum.bytesEach, sum.transactions], [0, 0, 5]);
});

test("a quorum against the hospitals online", () => {
  assert.deepEqual(quorumSentence(3, 2), {
    short: true,
    text: "2 hospitals are online now: the job waits until 3 are.",
  });
  assert.match(quorumSentence(2, 2).text, /all of them are needed/);
  assert.match(quorumSentence(1, 2).text, /even if 1 of them drops out/);
  assert.match(quorumSentence(1, 1).text, /^1 hospital is online/);
});
