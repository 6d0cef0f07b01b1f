// One picture, one model, one answer: nothing of one picture shows with another, and pictures are let go.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Consultation } from "../src/diagnosis/consultation.js";
import { CLASSES } from "../src/lesions.js";
import { Problem } from "../src/problem.js";

const NEW = { digest: "new", job: "job-1", contributors: ["0xAA", "0xBB"], rounds: 2, architecture: "resnet18" };
const OLD = { ...NEW, digest: "old", job: "job-0" };
const JOB = {
  id: "job-1",
  spec: { name: "First light" },
  rounds: [{ model: "new", pooled: {}, confusion: CLASSES.map((_, t) => CLASSES.map((_, p) => (t === p ? 3 : 1))) }],
};
const NODES = [{ address: "0xaa", registration: { site: "Vienna" } }];
const JPEG = Uint8Array.from([0xff, 0xd8, 0xff, 0xe0, 1, 2, 3]);

let routes; // what each path answers
let asked;
let urls;
let view;

beforeEach(async () => {
  asked = [];
  routes = {
    "/v1/models": () => [NEW, OLD],
    "/v1/models/new": () => NEW,
    "/v1/models/old": () => OLD,
    "/v1/jobs": () => [JOB],
    "/v1/jobs/job-1": () => JOB,
    "/v1/jobs/job-0": () => JOB,
    "/v1/nodes": () => NODES,
    "/v1/predictions": () => prediction(),
  };
  const api = {
    async json(service, path, options = {}) {
      asked.push({ service, path, ...options });
      options.signal?.throwIfAborted();
      const answer = await routes[path.split("?")[0]](path, options);
      options.signal?.throwIfAborted();
      return answer;
    },
  };
  urls = {
    made: 0,
    open: new Set(),
    createObjectURL() {
      this.made += 1;
      this.open.add(`blob:${this.made}`);
      return `blob:${this.made}`;
    },
    revokeObjectURL(url) {
      assert.ok(this.open.delete(url), `${url} is revoked once`);
    },
  };
  view = new Consultation(api, () => {}, urls);
});

const file = (content = JPEG, name = "mole-of-mr-smith.jpg") => new File([content], name, { type: "image/jpeg" });
const prediction = (top = "mel", model = "new") => ({
  model,
  job: model === "new" ? "job-1" : "job-0",
  probabilities: CLASSES.map(({ code }) => ({ code, name: code, probability: code === top ? 0.94 : 0.01 })),
});
const predictions = () => asked.filter(({ path }) => path.startsWith("/v1/predictions"));

/** A promise to be settled by hand. */
function later() {
  let settle;
  const promise = new Promise((resolve, reject) => (settle = { resolve, reject }));
  return { promise, ...settle };
}

async function ready() {
  await view.loadModels();
  await view.choose(file());
}

test("the newest model is asked unless another is chosen; the choice outlives looking again", async () => {
  await view.loadModels();
  assert.deepEqual([view.digest, view.jobs], ["new", { "job-1": "First light" }]);
  view.useModel("old");
  await view.loadModels();
  assert.equal(view.digest, "old");
  routes["/v1/models"] = () => [NEW];
  await view.loadModels();
  assert.equal(view.digest, "new");
  routes["/v1/models"] = () => [];
  await view.loadModels();
  assert.deepEqual([view.digest, view.models], [null, []]);
});

test("models that cannot be had are a sentence, and looking again clears it", async () => {
  routes["/v1/models"] = () => Promise.reject(new TypeError("away"));
  await view.loadModels();
  assert.match(view.modelsProblem, /cannot be reached/);
  assert.equal(view.models, undefined);
  routes["/v1/models"] = () => [NEW];
  await view.loadModels();
  assert.deepEqual([view.modelsProblem, view.models], ["", [NEW]]);
});

test("asking: the picture's bytes, without its name, to the chosen model; then answer and origin", async () => {
  await ready();
  await view.ask();
  const [{ service, path, method, body }] = predictions();
  assert.deepEqual([service, method], ["model", "POST"]);
  assert.equal(path, "/v1/predictions?attention=true&model=new");
  const sent = body.get("image");
  assert.deepEqual(new Uint8Array(await sent.arrayBuffer()), JPEG);
  assert.ok(!JSON.stringify([path, sent.name]).includes("smith"));
  assert.deepEqual([view.asking, view.answer.classes[0].code, view.shown], [false, "mel", "mel"]);
  const { version, job, hospitals, recognised, problem } = view.answer.origin;
  assert.deepEqual([version, job, problem], [NEW, JOB, ""]);
  assert.deepEqual(hospitals, [
    { address: "0xAA", site: "Vienna" },
    { address: "0xBB", site: "0xBB" },
  ]);
  assert.deepEqual(recognised[4], { found: 3, of: 9 });
});

test("the answer does not wait for the model's history, nor fail with it", async () => {
  await ready();
  const job = later();
  routes["/v1/jobs/job-1"] = () => job.promise;
  const asking = view.ask();
  await until(() => view.answer);
  assert.equal(view.answer.origin, undefined);
  job.reject(new Problem("The aggregator does not answer.", { status: 503 }));
  await asking;
  const { origin } = view.answer;
  assert.deepEqual([origin.job, origin.recognised, origin.problem], [null, null, "The aggregator does not answer."]);
  assert.equal(origin.version, NEW);
  routes["/v1/jobs/job-1"] = () => JOB;
  await view.trace();
  assert.deepEqual([view.answer.origin.job, view.answer.origin.problem], [JOB, ""]);
});

test("a second picture while the first is asked: the first's answer never shows", async () => {
  await ready();
  const first = later();
  routes["/v1/predictions"] = () => first.promise;
  const asking = view.ask();
  const { signal } = predictions()[0];
  const before = view.picture.url;
  await view.choose(file());
  assert.ok(signal.aborted);
  assert.ok(!urls.open.has(before) && urls.open.has(view.picture.url));
  first.resolve(prediction("nv"));
  await asking;
  assert.deepEqual([view.answer, view.failure, view.asking], [null, null, false]);
  routes["/v1/predictions"] = () => prediction("bcc");
  await view.ask();
  assert.equal(view.answer.classes[0].code, "bcc");
});

test("asked twice in a row: only the later answer shows, whichever comes first", async () => {
  await ready();
  const [first, second] = [later(), later()];
  const queue = [first, second];
  routes["/v1/predictions"] = () => queue.shift().promise;
  const asking = [view.ask(), view.ask()];
  second.resolve(prediction("bcc"));
  await until(() => view.answer);
  first.resolve(prediction("nv"));
  await Promise.all(asking);
  assert.equal(view.answer.classes[0].code, "bcc");
});

test("another model takes the earlier answer away and keeps the picture", async () => {
  await ready();
  await view.ask();
  const { picture } = view;
  view.useModel("old");
  assert.deepEqual([view.answer, view.shown, view.picture], [null, null, picture]);
  await view.ask();
  assert.match(predictions().at(-1).path, /model=old$/);
});

test("two files chosen at once: the later one stays, one URL is open", async () => {
  await view.loadModels();
  const slow = file();
  const read = later();
  slow.slice = () => ({ arrayBuffer: () => read.promise });
  const choosing = view.choose(slow);
  await view.choose(file());
  const kept = view.picture;
  read.resolve(JPEG.buffer);
  await choosing;
  assert.equal(view.picture, kept);
  assert.equal(urls.open.size, 1);
});

test("clearing revokes the picture and forgets the answer", async () => {
  await ready();
  await view.ask();
  view.clear();
  assert.deepEqual([view.picture, view.answer, view.shown, urls.open.size], [null, null, null, 0]);
  view.clear(); // twice is no error
});

test("files that are none are refused before anything is sent, and replace what was there", async () => {
  await ready();
  await view.choose(file(new TextEncoder().encode("GIF89a")));
  assert.match(view.objection, /no JPEG or PNG/);
  assert.deepEqual([view.picture, urls.open.size], [null, 0]);
  const folder = file();
  folder.slice = () => ({ arrayBuffer: () => Promise.reject(new DOMException("gone", "NotFoundError")) });
  await view.choose(folder);
  assert.match(view.objection, /cannot be read/);
  await view.choose(file());
  assert.equal(view.objection, "");
  assert.equal(predictions().length, 0);
});

test("a picture that the browser cannot decode, or of too many pixels, is let go", async () => {
  await ready();
  view.decoded(view.picture.url, { width: 600, height: 450 });
  assert.ok(view.picture);
  view.decoded("blob:of an earlier one");
  assert.ok(view.picture, "what is said of an earlier picture concerns no other");
  view.decoded(view.picture.url, { width: 10_000, height: 10_000 });
  assert.match(view.objection, /megapixels/);
  await view.choose(file());
  view.decoded(view.picture.url);
  assert.match(view.objection, /cannot be read/);
  assert.deepEqual([view.picture, urls.open.size], [null, 0]);
});

test("failures say what happened and keep the picture", async () => {
  await ready();
  routes["/v1/predictions"] = () => Promise.reject(new TypeError("away"));
  await view.ask();
  assert.deepEqual([view.failure.again, view.asking, view.answer], [true, false, null]);
  assert.ok(view.picture);
  routes["/v1/predictions"] = () => prediction();
  await view.ask();
  assert.equal(view.failure, null);
  assert.ok(view.answer);
});

test("a model that is gone meanwhile: the list is looked up again", async () => {
  await ready();
  routes["/v1/predictions"] = () => Promise.reject(new Problem("No such model.", { status: 404, code: "no_model" }));
  routes["/v1/models"] = () => [OLD];
  await view.ask();
  assert.deepEqual([view.digest, view.models], ["old", [OLD]]);
});

async function until(condition) {
  for (let turn = 0; turn < 100 && !condition(); turn += 1) await new Promise(setImmediate);
  assert.ok(condition());
}
