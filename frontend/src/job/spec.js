// A new job's form: its fields, what each may hold, and the description that services take. Pure.

const DIGEST = /^[0-9a-f]{64}$/;
const TIMM = /^timm:[a-z0-9_.]{1,60}$/;
/** Encodings that keep what an update left out for the next one. */
const LEAVES_OUT = /^(int8|topk)/;
/** Encodings whose length depends on what they hold, which all may see. */
const TELLS = /^topk|zstd$/;

/** What the form starts with; every value as text, as forms hold them. */
export const DEFAULTS = {
  name: "",
  architecture: "resnet50",
  timm: "",
  weights: "imagenet",
  model: "",
  artifact: "",
  adapter: "none",
  strategy: "fedavg",
  mu: "0.01",
  mixing: "none",
  hostile: "20",
  q: "1",
  radius: "1",
  central: "1",
  rounds: "3",
  quorum: "1",
  deadline: "60",
  target: "",
  recording: "each",
  encoding: "none",
  secure: "no",
  group: "5",
  epochs: "1",
  batch: "32",
  rate: "0.001",
  size: "224",
  train_cap: "",
  evaluate_every: "1",
  held_out_cap: "",
  flips: "no",
  own_shares: "no",
  calibrate: "yes",
  sensitivity: "90",
  balance: "loss",
  schedule: "round",
  privacy: "none",
  noise: "1",
  clip: "1",
  seed: "0",
};

/** Numbers' limits, as the services have them: least, most, whether whole, whether it may be left empty. */
export const LIMITS = {
  mu: { min: 0, max: 100 },
  hostile: { min: 0, max: 49 },
  q: { min: 0, max: 100 },
  radius: { min: 1e-6, max: 1e6 },
  central: { min: 0.01, max: 1000 },
  rounds: { min: 1, max: 10_000, whole: true },
  quorum: { min: 1, max: 100_000, whole: true },
  deadline: { min: 0.1, max: 43_200 },
  target: { min: 1, max: 100, optional: true },
  group: { min: 3, max: 1000, whole: true },
  epochs: { min: 1, max: 100, whole: true },
  batch: { min: 2, max: 1024, whole: true },
  rate: { min: 0.000001, max: 10 },
  size: { min: 32, max: 1024, whole: true },
  train_cap: { min: 1, max: 2 ** 53, whole: true, optional: true },
  evaluate_every: { min: 1, max: 10_000, whole: true },
  held_out_cap: { min: 1, max: 2 ** 53, whole: true, optional: true },
  sensitivity: { min: 50, max: 100 },
  noise: { min: 0.1, max: 1000 },
  clip: { min: 1e-6, max: 1e6 },
  seed: { min: 0, max: 2 ** 32 - 1, whole: true },
};

/** Strategies that bear hostile updates, and may be given means of some updates in place of them. */
const ROBUST = ["median", "trimmed_mean", "norm_clipping", "geometric_median", "krum", "multi_krum", "bulyan"].concat(
  "centred_clipping",
);
/** Strategies in which each hospital evaluates a network of its own, which says nothing of the published one. */
const OWN = ["fedbn", "fedrep"];
const COUNTING = ["krum", "multi_krum", "bulyan"];
/** Strategies that need no more of a round than the sum of its updates. */
const OF_SUMS = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"];

/** Which fields the chosen strategy has beside its name. */
export const strategyFields = ({ strategy, mixing, secure }) => {
  const mixes = ROBUST.includes(strategy) && secure !== "yes";
  return {
    mu: strategy === "fedprox",
    q: strategy === "qfedavg",
    radius: strategy === "dp_fedavg",
    central: strategy === "dp_fedavg",
    mixing: mixes,
    group: ROBUST.includes(strategy) && secure === "yes",
    hostile: COUNTING.includes(strategy) || (mixes && mixing === "nearest_neighbours"),
  };
};

/** The network as services name it: one of the list, or the one of timm's that was written beside it. */
export const networkOf = ({ architecture, timm }) => (architecture === "timm" ? `timm:${timm.trim()}` : architecture);

/** A network as the form's two fields have it. */
export const fieldsOfNetwork = (name) =>
  name.startsWith("timm:") ? { architecture: "timm", timm: name.slice(5) } : { architecture: name };

/** Whether the aggregator sees sums of updates alone. */
export const isSecure = ({ secure }) => secure === "yes";

/** Whether the published model is calibrated. */
export const calibrates = ({ strategy, calibrate }) => calibrate === "yes" && !OWN.includes(strategy);

/** Whether it can be. */
export const canCalibrate = ({ strategy }) => !OWN.includes(strategy);

/** Whether pictures are evaluated by how often each class comes at their hospital: by networks that leave that out. */
export const answersByShares = ({ balance, own_shares }) => balance === "logit" && own_shares === "yes";

/** Whether hospitals train with differential privacy. */
export const isPrivate = ({ privacy }) => privacy === "lesion";

/** Where services name a field of the description, and which field of the form that is. */
const WHERE = {
  name: "name",
  architecture: "architecture",
  initial: "artifact",
  file: "artifact",
  adapter: "adapter",
  "strategy.name": "strategy",
  "strategy.proximal_mu": "mu",
  "strategy.mixing": "mixing",
  "strategy.hostile": "hostile",
  "strategy.q": "q",
  "strategy.radius": "radius",
  "strategy.noise": "central",
  rounds: "rounds",
  quorum: "quorum",
  deadline_seconds: "deadline",
  target: "target",
  recording: "recording",
  encoding: "encoding",
  "encoding.name": "encoding",
  "encoding.share": "encoding",
  seed: "seed",
  secure: "secure",
  "secure.group": "group",
  "local.epochs": "epochs",
  "local.batch_size": "batch",
  "local.learning_rate": "rate",
  "local.image_size": "size",
  "local.max_images": "train_cap",
  "local.balance": "balance",
  "schedule.whole_job": "schedule",
  "evaluation.max_images": "held_out_cap",
  "evaluation.flips": "flips",
  "privacy.noise": "noise",
  "privacy.clip": "clip",
  own_shares: "own_shares",
  calibrate: "calibrate",
  sensitivity: "sensitivity",
  evaluate_every: "evaluate_every",
};

/** What is wrong with the form's values: a sentence for each field that is not right. */
export function faults(values) {
  const found = {};
  if (!values.name.trim()) found.name = "Give the job a name.";
  else if (values.name.trim().length > 100) found.name = "At most 100 characters.";
  if (values.architecture === "timm" && !TIMM.test(networkOf(values))) {
    found.timm = "timm's own name of a network: small letters, digits, _ and ., as in resnet10t.";
  }
  if (values.architecture === "timm" && values.weights === "imagenet") {
    found.weights =
      "Nothing is downloaded for networks of timm: choose random weights, or a file that somebody uploaded.";
  }
  const shown = strategyFields(values);
  for (const [field, limits] of Object.entries(LIMITS)) {
    if (shown[field] === false || (field === "sensitivity" && !calibrates(values))) continue;
    if ((field === "noise" || field === "clip") && !isPrivate(values)) continue;
    const wrong = numberFault(values[field], limits);
    if (wrong) found[field] = wrong;
  }
  if (values.strategy === "fedbuff" && LEAVES_OUT.test(values.encoding)) {
    found.encoding =
      "FedBuff needs updates as they are or in half precision: what the others leave out is lost with late work.";
  }
  if (isSecure(values) && values.encoding !== "none") {
    found.encoding = "Masked updates travel as they are: masks are on whole numbers of 32 bits.";
  }
  if (isSecure(values) && shown.central) {
    found.strategy = "Noise at the centre goes onto updates that it sees, and masks hide them.";
  } else if (isSecure(values) && !OF_SUMS.includes(values.strategy) && !ROBUST.includes(values.strategy)) {
    found.strategy = "This one must see single updates, and masks hide them.";
  }
  if (shown.central && TELLS.test(values.encoding)) {
    found.encoding = "With noise at the centre updates must all be of one length: as they are, or in half precision.";
  }
  if (shown.central && isPrivate(values)) {
    found.privacy = "Noise is the hospitals' own or the centre's, and not both.";
  }
  if (isPrivate(values) && values.balance !== "none") {
    found.balance = "With privacy they have to be left as they are: how many pictures a class has would show.";
  }
  if (isPrivate(values) && values.strategy === "qfedavg") {
    found.strategy = "q-FedAvg goes by the loss on training pictures, which no noise would be on.";
  }
  if (isPrivate(values) && values.strategy === "class_balanced") {
    found.strategy = "It goes by how many training pictures a class has, which no noise would be on.";
  }
  if (values.weights === "model" && !values.model) found.model = "Choose one of the published models.";
  if (values.weights === "artifact" && !DIGEST.test(values.artifact.trim())) {
    found.artifact = "A digest is 64 characters of 0–9 and a–f.";
  }
  return found;
}

function numberFault(text, { min, max, whole = false, optional = false }) {
  const trimmed = String(text ?? "").trim();
  if (trimmed === "") return optional ? null : `Enter a ${whole ? "whole " : ""}number.`;
  const value = Number(trimmed);
  if (!Number.isFinite(value)) return "That is not a number.";
  if (whole && !Number.isInteger(value)) return "Enter a whole number.";
  if (value < min) return `At least ${min}.`;
  if (value > max) return `At most ${max.toLocaleString("en")}.`;
  return null;
}

/** Whether the initial weights are there already. */
const areThere = (values) => values.weights === "model" || values.weights === "artifact";

/**
 * The body of `POST /v1/initial-models` where weights must be made first, or an adapter over some; null where the job
 * begins with an artifact as it is.
 */
export function initialRequest(values) {
  const adapter = values.adapter === "none" ? {} : { adapter: values.adapter };
  const { weights } = values;
  const architecture = networkOf(values);
  const seed = Number(values.seed);
  if (!areThere(values)) return { architecture, weights, seed, ...adapter };
  if (values.adapter === "none") return null;
  return { architecture, weights: "file", file: chosenArtifact(values), seed, ...adapter };
}

/** The digest of weights that are there already. */
export const chosenArtifact = (values) => (values.weights === "model" ? values.model : values.artifact.trim());

/** The encoding that a text like `topk:0.01+zstd` stands for, as services take it. */
export function encoding(text) {
  const [sent, wrap] = text.split("+");
  const [name, share] = sent.split(":");
  return { name, ...(share === undefined ? {} : { share: Number(share) }), zstd: wrap === "zstd" };
}

function strategy(values) {
  const shown = strategyFields(values);
  return {
    name: values.strategy,
    ...(shown.mu ? { proximal_mu: Number(values.mu) } : {}),
    ...(shown.q ? { q: Number(values.q) } : {}),
    ...(shown.central ? { radius: Number(values.radius), noise: Number(values.central) } : {}),
    ...(shown.mixing && values.mixing !== "none" ? { mixing: values.mixing } : {}),
    ...(shown.hostile ? { hostile: Number(values.hostile) / 100 } : {}),
  };
}

/** The body of `POST /v1/jobs`, from values without faults and the digest of the initial weights. */
export function jobSpec(values, initial) {
  const optional = (text) => (text.trim() === "" ? null : Number(text));
  const target = optional(values.target);
  return {
    name: values.name.trim(),
    architecture: networkOf(values),
    initial,
    strategy: strategy(values),
    rounds: Number(values.rounds),
    quorum: Number(values.quorum),
    deadline_seconds: Math.round(Number(values.deadline) * 60),
    target: target === null ? null : target / 100,
    recording: values.recording,
    encoding: encoding(values.encoding),
    seed: Number(values.seed),
    local: {
      epochs: Number(values.epochs),
      batch_size: Number(values.batch),
      learning_rate: Number(values.rate),
      image_size: Number(values.size),
      max_images: optional(values.train_cap),
      balance: values.balance,
    },
    evaluation: { max_images: optional(values.held_out_cap), ...(values.flips === "yes" ? { flips: true } : {}) },
    evaluate_every: Number(values.evaluate_every),
    ...(isSecure(values) ? { secure: strategyFields(values).group ? { group: Number(values.group) } : {} } : {}),
    ...(isPrivate(values) ? { privacy: { noise: Number(values.noise), clip: Number(values.clip) } } : {}),
    ...(values.schedule === "job" ? { schedule: { whole_job: true, warm_up: 0.5 } } : {}),
    ...(answersByShares(values) ? { own_shares: true } : {}),
    ...(calibrates(values) ? { calibrate: true, sensitivity: Number(values.sensitivity) / 100 } : {}),
  };
}

const WEIGHTS = {
  initial_missing: "No such file is stored.",
  artifact_not_found: "No such file is stored.",
  weights_do_not_fit: "That file does not fit the network.",
  weights_unavailable:
    "ImageNet weights cannot be downloaded here. Choose random weights, or a file that somebody uploaded.",
};

/** A refusal by a service as sentences beside fields, and one for the top where it is about none of them. */
export function refusalOf(problem, sentence) {
  const fields = {};
  const others = [];
  for (const { where, what } of problem.document?.errors ?? []) {
    const field = WHERE[where.replace(/^body\.?/, "")];
    if (field) fields[field] ??= capital(what);
    else others.push(`${where}: ${what}`);
  }
  if (problem.code in WEIGHTS)
    fields[problem.code === "weights_unavailable" ? "weights" : "artifact"] = WEIGHTS[problem.code];
  if (problem.code === "architecture_unavailable") fields.timm = sentence;
  const named = Object.keys(fields).length > 0;
  const top = named && others.length === 0 ? "The job was not created: see the fields marked below." : sentence;
  return { fields, top: [top, ...others].join(" ") };
}

const capital = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
