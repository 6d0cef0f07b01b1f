// Files that can be asked about, and why others cannot.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { failure } from "../src/diagnosis/failure.js";
import { lines } from "../src/diagnosis/paragraphs.js";
import { kindOf, MAX_BYTES, MAX_PIXELS, objection, tooManyPixels } from "../src/diagnosis/picture.js";
import { Problem } from "../src/problem.js";

const SETTINGS = new URL("../../services/model/concilia_model/settings.py", import.meta.url);
const bytes = (...values) => Uint8Array.from(values);
const JPEG = bytes(0xff, 0xd8, 0xff, 0xe0, 0, 16);
const PNG = bytes(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0);
const text = (at, letters) => Uint8Array.from([...Array(at).fill(0), ...new TextEncoder().encode(letters)]);

test("limits are the model service's own", async () => {
  const python = await readFile(SETTINGS, "utf8");
  const limit = (name) => {
    const [, factor, power] = python.match(new RegExp(`${name}: int = Field\\(default=(\\d+) \\* 10\\*\\*(\\d+)`));
    return Number(factor) * 10 ** Number(power);
  };
  assert.deepEqual([MAX_BYTES, MAX_PIXELS], [limit("max_image_bytes"), limit("max_image_pixels")]);
});

test("what a file is, by its bytes and not its name", () => {
  assert.deepEqual([kindOf(JPEG), kindOf(PNG)], ["jpeg", "png"]);
  assert.deepEqual([kindOf(text(128, "DICM")), kindOf(text(4, "ftypheic"))], ["dicom", "heic"]);
  for (const other of [bytes(), bytes(0xff), bytes(0xff, 0xd8), text(0, "GIF89a"), text(0, "<svg"), text(0, "%PDF")]) {
    assert.equal(kindOf(other), undefined);
  }
});

test("JPEG and PNG up to ten million bytes are taken", () => {
  for (const head of [JPEG, PNG]) {
    assert.equal(objection({ size: 1, head }), null);
    assert.equal(objection({ size: MAX_BYTES, head }), null);
    assert.match(objection({ size: MAX_BYTES + 1, head }), /has 10\.1 MB; 10 MB is the most/);
  }
});

test("each other file has a sentence that says what to do", () => {
  const cases = [
    [{ size: 0, head: bytes() }, /empty/],
    [{ size: 9, head: text(128, "DICM") }, /DICOM.*Export/],
    [{ size: 9, head: text(4, "ftypheic") }, /HEIC.*JPEG or PNG/],
    [{ size: 9, head: text(0, "GIF89a") }, /no JPEG or PNG/],
  ];
  for (const [file, said] of cases) assert.match(objection(file), said);
});

test("more pixels than the model reads are known before they are sent", () => {
  assert.equal(tooManyPixels(8000, 5000), null);
  assert.match(tooManyPixels(8000, 5001), /has 40\.1 megapixels; 40 is the most/);
});

test("failures: a sentence, and whether the same question may be asked again", () => {
  const of = (code, status) => failure(new Problem("from the service", { code, status }));
  for (const code of ["image_too_large", "http_413", "image_unreadable", "role_missing"]) {
    assert.equal(of(code, 400).again, false);
    assert.notEqual(of(code, 400).message, "from the service");
  }
  assert.deepEqual(of("no_model", 404), { code: "no_model", message: "from the service", again: false });
  assert.deepEqual(of("service_unavailable", 503).again, true);
  const gone = failure(new TypeError("Failed to fetch"));
  assert.deepEqual([gone.code, gone.again], ["unreachable", true]);
  assert.match(gone.message, /cannot be reached/);
});

test("lines: none too wide, no letter lost, and no line that could have taken the next word", () => {
  const measure = (part) => [...part].length;
  const source = `Of 43 held-out pictures of melanoma this model recognised 19 (44 %). Grüße 🏥 ${"a3".repeat(32)}`;
  for (let width = 1; width < 120; width += 1) {
    const broken = lines(source, width, measure);
    assert.equal(broken.join("").replaceAll(" ", ""), source.replaceAll(" ", ""));
    for (const line of broken) assert.ok(measure(line) <= width, `${width}: ${line}`);
    for (let at = 1; at < broken.length; at += 1) {
      assert.ok(measure(`${broken[at - 1]} ${broken[at].split(" ")[0]}`) > width || width < 64);
    }
  }
  assert.deepEqual(lines("  ", 10, measure), []);
});
