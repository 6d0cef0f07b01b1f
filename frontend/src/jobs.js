// The phases of a job in words, and what follows from a job's description. Pure.

export const PHASES = {
  baseline: { label: "measuring the start", what: "Hospitals evaluate the initial model." },
  opening: { label: "opening a round", what: "The next round is written on the ledger." },
  training: { label: "training", what: "Hospitals train, sign and upload." },
  unmasking: { label: "unmasking", what: "Hospitals agree to a sum, and take the masks off it." },
  folding: { label: "aggregating", what: "Confirmed updates are checked and averaged." },
  evaluating: { label: "evaluating", what: "Hospitals evaluate the new model." },
  publishing: { label: "publishing", what: "The finished model is written on the ledger." },
  finished: { label: "finished", what: "The model is published." },
  failed: { label: "failed", what: "Too many rounds in a row were given up." },
  stopped: { label: "stopped", what: "An administrator stopped it." },
};

export const ENDED = new Set(["finished", "failed", "stopped"]);

/** The phases that repeat each round of a job, in order: one more where the aggregator sees sums only. */
export const roundPhases = (spec) =>
  spec.secure
    ? ["opening", "training", "unmasking", "folding", "evaluating"]
    : ["opening", "training", "folding", "evaluating"];

/** A badge for where a job stands: its words and its look. */
export function badge({ phase, paused }) {
  if (phase === "finished") return { label: "finished", look: "good" };
  if (phase === "failed") return { label: "failed", look: "bad" };
  if (phase === "stopped") return { label: "stopped", look: "" };
  if (paused) return { label: "paused", look: "warn" };
  return { label: PHASES[phase]?.label ?? phase, look: "live" };
}

/** How many rounds were closed on a new model. Rounds that were given up do not count. */
export const closedRounds = (job) => job.rounds.filter((round) => round.round > 0 && round.closed_at).length;

/** "round 2 of 3"; where rounds were given up their numbers run ahead, and it says so: "round 4, 2 of 3 closed". */
export function roundOf(job) {
  const closed = closedRounds(job);
  const { rounds } = job.spec;
  if (ENDED.has(job.phase)) return `${closed} of ${rounds} rounds`;
  if (job.round === 0) return `before round 1 of ${rounds}`;
  return job.round - closed > 1
    ? `round ${job.round}, ${closed} of ${rounds} closed`
    : `round ${job.round} of ${rounds}`;
}

/** The scores of the newest evaluated model, null before any; `round` says which. */
export function latest(job) {
  const round = job.rounds.findLast((each) => each.pooled);
  return round ? { round: round.round, ...round.pooled } : null;
}
