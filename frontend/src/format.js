// Numbers, times, addresses and digests as people read them. Pure.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** 12345 → "12,345". */
export const count = (value) => NUMBER.format(value);

/** 0.7312 → "73.1 %"; nothing known → "–". */
export const percent = (value, digits = 1) => (value == null ? "–" : `${(value * 100).toFixed(digits)} %`);

/** 0.7312 → "0.731". */
export const decimal = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits));

/** Bytes in decimal units: 9512345 → "9.5 MB". */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 99.5 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

/** Seconds: 0.0421 → "42 ms", 7.31 → "7.3 s", 135 → "2 min 15 s", 8100 → "2 h 15 min", 200000 → "2 d 7 h". */
export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const from = parts.findIndex(([value]) => value > 0);
  return parts
    .slice(from, from + 2)
    .filter(([value]) => value > 0)
    .map(([value, unit]) => `${value} ${unit}`)
    .join(" ");
}

/** A moment in the reader's own time zone, from ISO 8601 or milliseconds. */
export const moment = (value) => (value == null ? "–" : DATE.format(new Date(value)));

/** An address or digest, shortened in the middle: "0x1234…abcd". */
export const short = (text) =>
  text == null ? "–" : text.length <= 13 ? text : `${text.slice(0, 6)}…${text.slice(-4)}`;

/** A digest's or job's first eight characters. */
export const brief = (digest) => (digest == null ? "–" : digest.slice(0, 8));

/** "mobilenet_v2" → "MobileNetV2". */
export const architecture = (name) =>
  ({
    resnet50: "ResNet-50",
    resnet18: "ResNet-18",
    mobilenet_v2: "MobileNetV2",
    efficientnet_b0: "EfficientNet-B0",
    convnext_tiny: "ConvNeXt-Tiny",
    resnet18_gn: "ResNet-18 with group normalisation",
    mobilenet_v2_gn: "MobileNetV2 with group normalisation",
  })[name] ?? (name.startsWith("timm:") ? `${name.slice(5)} (timm)` : name);

/** What differential privacy cost a hospital's lesions, in a word: the smaller, the less can be told of any of them. */
export const privacyWords = ({ epsilon, delta, central = false }) =>
  `ε ${epsilon.toFixed(2)} at δ ${delta.toExponential(0)}${central ? ", of the models" : ""}`;

/** What a job asks of privacy, in a sentence. */
export function privacySentence(privacy, strategy = {}) {
  if (privacy)
    return `differential privacy, a lesion with all its pictures at a time: noise ${privacy.noise} times the clipping norm of ${privacy.clip}`;
  if (strategy.name === "dp_fedavg")
    return `differential privacy of the models, a lesion with all its pictures at a time: updates cut to ${strategy.radius}, and noise of ${strategy.noise} times that on their sum, by the aggregator, which sees them without`;
  return "no differential privacy";
}

/** What is sent of an update, in a sentence; a job from before there were encodings has none. */
export function encodingSentence({ name = "none", share = null, zstd = false } = {}) {
  const sent = {
    none: "all of each update, as it is",
    float16: "each update's difference in half precision",
    int8: "each update's difference in eight bits",
    topk: `the largest ${Number(((share ?? 0) * 100).toPrecision(3))} % of each update's difference`,
  }[name];
  return `${sent ?? name}${zstd ? ", compressed" : ""}`;
}

/** How updates become a model, as a job's `strategy` has it. */
export function strategySentence({ name, proximal_mu, mixing, hostile, q, radius, noise }) {
  const known = new Map([
    ["fedavg", "FedAvg"],
    ["fedprox", `FedProx, mu ${proximal_mu}`],
    ["fedavgm", "FedAvg with momentum at the centre"],
    ["fedadam", "FedAdam"],
    ["fedyogi", "FedYogi"],
    ["fedadagrad", "FedAdagrad"],
    ["scaffold", "SCAFFOLD: local steps are corrected"],
    ["fednova", "FedNova: by how far each hospital trained"],
    ["qfedavg", `q-FedAvg, q ${q ?? 1}: hospitals count more where the model does badly`],
    ["class_balanced", "hospitals count by their parts of each class, and every class alike"],
    ["fedbn", "FedBN: each hospital keeps its own normalisation"],
    ["fedrep", "each hospital keeps its own last layer"],
    ["fedbuff", "FedBuff: late work counts in a later round, with less weight"],
    ["norm_clipping", "FedAvg of updates of bounded length"],
    ["dp_fedavg", `DP-FedAvg: updates of length ${radius} at most, and noise of ${noise} times that on their sum`],
    ["median", "median of each weight"],
    ["trimmed_mean", "trimmed mean of each weight"],
    ["geometric_median", "geometric median of the updates"],
    ["centred_clipping", "centred clipping"],
    ["krum", "Krum: the one update nearest to most others"],
    ["multi_krum", "Multi-Krum: the mean of updates near to most others"],
    ["bulyan", "Bulyan"],
    ["fltrust", "FLTrust: by how much updates agree with a trusted hospital's"],
  ]);
  const mixed =
    { nearest_neighbours: ", of means of nearest updates", bucketing: ", of means of buckets" }[mixing] ?? "";
  const borne = hostile === undefined ? "" : `, ${Math.round(hostile * 100)} % may be hostile`;
  return `${known.get(name) ?? name}${mixed}${borne}`;
}
