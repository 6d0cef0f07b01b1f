// The classes in the order in which every service sends vectors and matrices.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { CLASSES, MELANOMA } from "../src/lesions.js";

const KIT = new URL("../../libs/kit/concilia_kit/lesions.py", import.meta.url);

test("codes and names are the services' own, in their order", async () => {
  const python = await readFile(KIT, "utf8");
  const [, listed] = python.match(/^CLASSES\b[^=]*= \(([^)]*)\)/m);
  assert.deepEqual(
    CLASSES.map(({ code }) => code),
    [...listed.matchAll(/"(\w+)"/g)].map(([, code]) => code),
  );
  for (const { code, name } of CLASSES) assert.ok(python.includes(`"${code}": "${name}"`), `${code}: ${name}`);
  assert.equal(CLASSES[MELANOMA].code, "mel");
});

test("each is malignant, pre-malignant or benign, and said to be what it is", () => {
  const kinds = Object.fromEntries(CLASSES.map(({ code, kind }) => [code, kind]));
  assert.deepEqual(kinds, {
    ...{ akiec: "pre-malignant", bcc: "malignant", bkl: "benign", df: "benign" },
    ...{ mel: "malignant", nv: "benign", vasc: "benign" },
  });
  for (const { what } of CLASSES) assert.match(what, /^[A-Z].+\.$/);
});
