// A job as services tell it, small: two hospitals, four rounds at most.

export const ADA = "0xAdA0000000000000000000000000000000000001";
export const BOB = "0xB0b0000000000000000000000000000000000002";
export const JOB = "a".repeat(64);

const recall = (value) => Array(7).fill(value);

/** Scores with a balanced accuracy. */
export const scores = (value) => ({
  images: 70,
  accuracy: value,
  balanced_accuracy: value,
  loss: 2 - value,
  recall: recall(value),
  melanoma_recall: value / 2,
  auc: recall(0.5),
});

/** A round, with what differs from one that nothing is known of. */
export const round = (number, fields = {}) => ({
  round: number,
  base: null,
  model: null,
  opened_at: null,
  closed_at: null,
  deadline: null,
  accepted: 0,
  rejected: [],
  pooled: null,
  confusion: null,
  sites: [],
  overlapping_lesions: null,
  seconds_training: 0,
  seconds_moving: 0,
  seconds_chain: 0,
  seconds_folding: 0,
  bytes_moved: 0,
  progress: {},
  ...fields,
});

/** A job's view. */
export const view = (fields = {}) => ({
  id: JOB,
  spec: {
    name: "trial",
    architecture: "resnet18",
    initial: "0".repeat(64),
    strategy: { name: "fedavg", proximal_mu: 0.01 },
    rounds: 3,
    quorum: 1,
    deadline_seconds: 600,
    target: null,
    recording: "each",
    seed: 0,
    local: {},
    evaluation: {},
  },
  phase: "training",
  paused: false,
  round: 1,
  detail: "",
  created_at: "2026-11-24T10:00:00Z",
  created_by: "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
  model: null,
  rounds: [
    round(0),
    round(1, { opened_at: "2026-11-24T10:01:00Z", deadline: Date.parse("2026-11-24T10:11:00Z") / 1000 }),
  ],
  ...fields,
});

export const node = (address, site, seen = 1) => ({ address, registration: { site }, seen_seconds_ago: seen });

export const progress = (hospital, stage, fraction = 0, number = 1) => ({
  name: "progress",
  data: { round: number, hospital, progress: { stage, fraction, detail: "" } },
});

export const recorded = (hospital, block, number = 1, log_index = 0) => ({
  name: "UpdateRecorded",
  job: JOB,
  round: number,
  block,
  log_index,
  transaction: `0x${String(block).padStart(64, "0")}`,
  arguments: { job: JOB, round: number, hospital, digest: "d".repeat(64), samples: 10, metrics: "e".repeat(64) },
});

export const rejected = (hospital, block, reason, number = 1) => ({
  ...recorded(hospital, block, number),
  name: "UpdateRejected",
  arguments: { job: JOB, round: number, hospital, reason },
});

export const transaction = (block, seconds) => ({
  transaction: `0x${String(block).padStart(64, "0")}`,
  block,
  gas: 1,
  received_at: "2026-11-24T10:02:00.000Z",
  sent_at: "2026-11-24T10:02:00.100Z",
  confirmed_at: new Date(Date.parse("2026-11-24T10:02:00Z") + seconds * 1000).toISOString(),
  function: "submitUpdates",
  job: JOB,
  round: 1,
  hospital: null,
});

/** A Merkle job's view. */
export const merkleView = (fields = {}) => {
  const plain = view(fields);
  return { ...plain, spec: { ...plain.spec, recording: "merkle" } };
};

/** The event of a Merkle round's commitment. */
export const committed = (block, number = 1) => ({
  ...recorded(ADA, block, number),
  name: "UpdatesCommitted",
  arguments: { job: JOB, round: number, root: "f".repeat(64), count: 2 },
});

/** A Merkle round as the chain service has it: with hospitals whose updates are collected, or committed. */
export const merkleRound = ({ collected = [], updates = [], number = 1 }) => ({
  job: JOB,
  round: number,
  merkle: true,
  collected,
  root: updates.length ? "f".repeat(64) : null,
  updates: updates.map((hospital, index) => ({
    update: { hospital },
    index,
    transaction: `0x${"9".padStart(64, "0")}`,
    block: 9,
  })),
});
