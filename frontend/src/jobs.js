// The phases of a job in words, and what follows from a job's description. Pure.

export const PHASES = {
  baseline: { label: "measuring the start", what: "Hospitals evaluate the initial model." },
  opening: { label: "opening a round", what: "The next round is written on the ledger." },
  training: { label: "training", what: "Hospitals train, sign and upload." },
  folding: { label: "aggregating", what: "Confirmed updates are checked and averaged." },
  evaluating: { label: "evaluating", what: "Hospitals evaluate the new model." },
  publishing: { label: "publishing", what: "The finished model is written on the ledger." },
  finished: { label: "finished", what: "The model is published." },
  failed: { label: "failed", what: "Too many rounds in a row were given up." },
  stopped: { label: "stopped", what: "An administrator stopped it." },
};

export const ENDED = new Set(["finished", "failed", "stopped"]);

/** The phases that repeat each round, in order. */
export const ROUND_PHASES = ["opening", "training", "folding", "evaluating"];
