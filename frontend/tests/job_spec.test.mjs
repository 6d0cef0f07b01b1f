import assert from "node:assert/strict";
import { test } from "node:test";
import {
  chosenArtifact,
  DEFAULTS,
  encoding,
  faults,
  fieldsOfNetwork,
  initialRequest,
  jobSpec,
  networkOf,
  refusalOf,
} from "../src/job/spec.js";
import { Problem } from "../src/problem.js";

const values = (changes = {}) => ({ ...DEFAULTS, name: "trial", ...changes });

test("the defaults need a name alone", () => {
  assert.deepEqual(Object.keys(faults({ ...DEFAULTS })), ["name"]);
  assert.deepEqual(faults(values()), {});
});

test("each wrong value has its sentence", () => {
  const wrong = {
    name: " ",
    rounds: "0",
    quorum: "1.5",
    deadline: "",
    target: "101",
    epochs: "many",
    rate: "0",
    size: "31",
    seed: "-1",
  };
  const found = faults(values(wrong));
  assert.deepEqual(Object.keys(found).sort(), Object.keys(wrong).sort());
  assert.equal(found.rounds, "At least 1.");
  assert.equal(found.quorum, "Enter a whole number.");
  assert.equal(found.epochs, "That is not a number.");
});

test("mu matters with FedProx alone", () => {
  assert.deepEqual(faults(values({ mu: "x" })), {});
  assert.deepEqual(faults(values({ mu: "x", strategy: "fedprox" })), { mu: "That is not a number." });
});

test("a strategy is described by the fields that it has, and judged by them alone", () => {
  const of = (changes) => jobSpec(values(changes), "f".repeat(64)).strategy;
  const odd = { hostile: "30", mixing: "nearest_neighbours", q: "x" };
  assert.deepEqual(faults(values({ ...odd, strategy: "fedadam" })), {});
  assert.deepEqual(of({ ...odd, strategy: "fedadam" }), { name: "fedadam" });
  assert.deepEqual(of({ ...odd, strategy: "median" }), { name: "median", mixing: "nearest_neighbours", hostile: 0.3 });
  assert.deepEqual(of({ strategy: "krum", hostile: "30" }), { name: "krum", hostile: 0.3 });
  assert.deepEqual(of({ strategy: "median", mixing: "bucketing" }), { name: "median", mixing: "bucketing" });
  assert.deepEqual(of({ strategy: "qfedavg", q: "2" }), { name: "qfedavg", q: 2 });
  assert.deepEqual(of({ strategy: "class_balanced" }), { name: "class_balanced" });
  const counted = faults(values({ strategy: "class_balanced", privacy: "lesion", balance: "none" }));
  assert.match(counted.strategy, /how many training pictures a class has/);
  assert.deepEqual(faults(values({ strategy: "qfedavg", q: "x" })), { q: "That is not a number." });
  assert.deepEqual(faults(values({ strategy: "bulyan", hostile: "50" })), { hostile: "At most 49." });
});

test("what FedBuff cannot be sent as is told before it is asked", () => {
  const chosen = (encoding) => faults(values({ strategy: "fedbuff", encoding }));
  assert.deepEqual(Object.keys(chosen("int8+zstd")), ["encoding"]);
  assert.deepEqual(Object.keys(chosen("topk:0.01+zstd")), ["encoding"]);
  assert.deepEqual([chosen("none"), chosen("float16")], [{}, {}]);
  assert.deepEqual(faults(values({ encoding: "int8+zstd" })), {});
  assert.deepEqual(jobSpec(values({ strategy: "fedbuff" }), "f".repeat(64)).strategy, { name: "fedbuff" });
});

test("privacy is described where it is chosen, and says what it cannot go with", () => {
  const of = (changes) => jobSpec(values(changes), "f".repeat(64)).privacy;
  const chosen = { privacy: "lesion", balance: "none", noise: "1.5", clip: "0.5" };
  assert.equal(of({ noise: "1.5" }), undefined);
  assert.deepEqual(of(chosen), { noise: 1.5, clip: 0.5 });
  assert.deepEqual(faults(values(chosen)), {});
  assert.deepEqual(faults(values({ noise: "x", clip: "x" })), {});
  assert.deepEqual(Object.keys(faults(values({ ...chosen, noise: "0", clip: "0" }))), ["noise", "clip"]);
  assert.deepEqual(Object.keys(faults(values({ ...chosen, balance: "loss" }))), ["balance"]);
  assert.deepEqual(Object.keys(faults(values({ ...chosen, strategy: "qfedavg" }))), ["strategy"]);
});

test("noise at the centre is described with its strategy, and says what it cannot go with", () => {
  const chosen = { strategy: "dp_fedavg", radius: "0.5", central: "2" };
  const of = (changes) => faults(values({ ...chosen, ...changes }));
  assert.deepEqual(jobSpec(values(chosen), "f".repeat(64)).strategy, { name: "dp_fedavg", radius: 0.5, noise: 2 });
  assert.deepEqual(jobSpec(values({ ...chosen, strategy: "fedavg" }), "f".repeat(64)).strategy, { name: "fedavg" });
  assert.deepEqual([of({}), of({ encoding: "float16" }), of({ balance: "loss" })], [{}, {}, {}]);
  assert.deepEqual(Object.keys(of({ radius: "0", central: "x" })), ["radius", "central"]);
  assert.deepEqual(Object.keys(of({ secure: "yes" })), ["strategy"]);
  assert.match(of({ secure: "yes" }).strategy, /masks hide them/);
  assert.deepEqual(Object.keys(of({ encoding: "int8+zstd" })), ["encoding"]);
  assert.deepEqual(Object.keys(of({ encoding: "topk:0.01+zstd" })), ["encoding"]);
  assert.deepEqual(Object.keys(of({ privacy: "lesion", balance: "none" })), ["privacy"]);
  assert.deepEqual(faults(values({ radius: "x", central: "x" })), {});
});

test("weights that exist must be named", () => {
  assert.ok(faults(values({ weights: "model" })).model);
  assert.ok(faults(values({ weights: "artifact", artifact: "0xabc" })).artifact);
  assert.equal(chosenArtifact(values({ weights: "artifact", artifact: ` ${"a".repeat(64)} ` })), "a".repeat(64));
  assert.equal(initialRequest(values({ weights: "artifact" })), null);
  assert.deepEqual(initialRequest(values({ weights: "random", seed: "7" })), {
    architecture: "resnet50",
    weights: "random",
    seed: 7,
  });
});

test("an adapter is made over whatever weights there are", () => {
  const of = (changes) => initialRequest(values({ adapter: "lora:8", ...changes }));
  assert.deepEqual(of({ weights: "random", seed: "7" }), {
    architecture: "resnet50",
    weights: "random",
    seed: 7,
    adapter: "lora:8",
  });
  const digest = "a".repeat(64);
  const file = { architecture: "resnet50", weights: "file", file: digest, seed: 0, adapter: "lora:8" };
  assert.deepEqual(of({ weights: "artifact", artifact: digest }), file);
  assert.deepEqual(of({ weights: "model", model: digest }), file);
});

test("a description in the services' units", () => {
  const spec = jobSpec(
    values({ deadline: "0.5", evaluate_every: "4", target: "80", train_cap: "40", strategy: "fedprox", mu: "0.1" }),
    "f".repeat(64),
  );
  assert.deepEqual(
    [spec.deadline_seconds, spec.target, spec.local.max_images, spec.evaluation.max_images, spec.evaluate_every],
    [30, 0.8, 40, null, 4],
  );
  assert.deepEqual(spec.strategy, { name: "fedprox", proximal_mu: 0.1 });
  assert.deepEqual(jobSpec(values(), "f".repeat(64)).strategy, { name: "fedavg" });
});

test("updates are recorded each by itself unless it is asked otherwise", () => {
  assert.equal(jobSpec(values(), "f".repeat(64)).recording, "each");
  assert.equal(jobSpec(values({ recording: "merkle" }), "f".repeat(64)).recording, "merkle");
});

test("the learning rate falls in every round unless it is asked otherwise", () => {
  assert.equal(jobSpec(values(), "f".repeat(64)).schedule, undefined);
  assert.deepEqual(jobSpec(values({ schedule: "job" }), "f".repeat(64)).schedule, { whole_job: true, warm_up: 0.5 });
  assert.equal(jobSpec(values({ balance: "logit" }), "f".repeat(64)).local.balance, "logit");
});

test("a service's refusal stands beside its fields", () => {
  const errors = [
    { where: "body.local.epochs", what: "Input should be less than or equal to 100" },
    { where: "body.surprise", what: "extra" },
  ];
  const problem = new Problem("no", { status: 422, code: "invalid_request", document: { errors } });
  const { fields, top } = refusalOf(problem, "It does not fit.");
  assert.deepEqual(fields, { epochs: "Input should be less than or equal to 100." });
  assert.equal(top, "It does not fit. body.surprise: extra");
});

test("weights that cannot be had are said at their field", () => {
  const refusal = (code) => refusalOf(new Problem("no", { status: 503, code }), "no");
  assert.match(refusal("weights_unavailable").fields.weights, /Choose random/);
  assert.match(refusal("initial_missing").fields.artifact, /No such file/);
  assert.deepEqual(refusal("database_unavailable"), { fields: {}, top: "no" });
  assert.deepEqual(refusalOf(new TypeError("x"), "away"), { fields: {}, top: "away" });
});

test("an encoding as services take it", () => {
  assert.deepEqual(encoding("none"), { name: "none", zstd: false });
  assert.deepEqual(encoding("int8+zstd"), { name: "int8", zstd: true });
  assert.deepEqual(encoding("topk:0.01+zstd"), { name: "topk", share: 0.01, zstd: true });
  assert.deepEqual(jobSpec(values({ encoding: "float16" }), "f".repeat(64)).encoding, { name: "float16", zstd: false });
});

test("pictures are evaluated by their hospital's shares where networks leave those out, and it is asked for", () => {
  const of = (changes) => jobSpec(values(changes), "f".repeat(64)).own_shares;
  assert.equal(of({ balance: "logit", own_shares: "yes" }), true);
  assert.equal(of({ balance: "logit" }), undefined);
  assert.equal(of({ balance: "loss", own_shares: "yes" }), undefined);
});

test("a job calibrates unless it is asked not to, or hospitals evaluate networks of their own", () => {
  const of = (changes) => {
    const { calibrate, sensitivity } = jobSpec(values(changes), "f".repeat(64));
    return [calibrate, sensitivity];
  };
  assert.deepEqual(of({}), [true, 0.9]);
  assert.deepEqual(of({ sensitivity: "95" }), [true, 0.95]);
  assert.deepEqual(of({ calibrate: "no" }), [undefined, undefined]);
  assert.deepEqual(of({ strategy: "fedrep" }), [undefined, undefined]);
  assert.deepEqual(faults(values({ sensitivity: "101" })), { sensitivity: "At most 100." });
  assert.deepEqual(faults(values({ sensitivity: "x", calibrate: "no" })), {});
  assert.deepEqual(faults(values({ sensitivity: "x", strategy: "fedbn" })), {});
});

test("pictures are looked at from all sides where that is asked for", () => {
  assert.deepEqual(jobSpec(values(), "f".repeat(64)).evaluation, { max_images: null });
  assert.deepEqual(jobSpec(values({ flips: "yes" }), "f".repeat(64)).evaluation, { max_images: null, flips: true });
});

test("secure aggregation is asked for with what goes by sums, or by groups' sums", () => {
  const of = (changes) => jobSpec(values(changes), "f".repeat(64));
  assert.equal(of({}).secure, undefined);
  assert.deepEqual(of({ secure: "yes", group: "x" }).secure, {});
  assert.deepEqual(faults(values({ secure: "yes", group: "x" })), {});
  const groups = { secure: "yes", strategy: "median", group: "4", mixing: "bucketing" };
  assert.deepEqual(of(groups).secure, { group: 4 });
  assert.equal(of(groups).strategy.mixing, undefined);
  assert.deepEqual(faults(values({ ...groups, group: "2" })), { group: "At least 3." });
  assert.match(faults(values({ secure: "yes", strategy: "scaffold" })).strategy, /single updates/);
  assert.match(faults(values({ secure: "yes", encoding: "float16" })).encoding, /as they are/);
});

test("a network of timm is asked for by its name, and nothing is downloaded for it", () => {
  const chosen = (changes) => values({ architecture: "timm", timm: " resnet10t ", weights: "random", ...changes });
  assert.deepEqual(faults(chosen()), {});
  assert.equal(jobSpec(chosen(), "f".repeat(64)).architecture, "timm:resnet10t");
  assert.equal(initialRequest(chosen()).architecture, "timm:resnet10t");
  for (const timm of ["", "ResNet", "hf-hub:someone", "a/b", "x".repeat(61)]) {
    assert.deepEqual(Object.keys(faults(chosen({ timm }))), ["timm"]);
  }
  assert.deepEqual(Object.keys(faults(chosen({ weights: "imagenet" }))), ["weights"]);
  assert.deepEqual(faults(values({ timm: "not a name" })), {});
});

test("a network's name and the form's fields of it are one", () => {
  for (const name of ["resnet18", "timm:mobilenetv3_small_100"]) assert.equal(networkOf(fieldsOfNetwork(name)), name);
});

test("that a network of timm is not to be had is told beside its name", () => {
  const problem = new Problem("no", { status: 422, code: "architecture_unavailable" });
  assert.deepEqual(Object.keys(refusalOf(problem, "It is not there.").fields), ["timm"]);
});
