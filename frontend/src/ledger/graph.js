// A job's lineage as a graph: what each model was made from. Pure; `layout.js` places it, `drawing.js` draws it.
//
// A stage is a round: updates, and the end they lead to (a model, a round given up, a round under way). The next stage
// starts from that end; after a round that was given up the model is still the one before.

const MANY = 48;

/**
 * The graph of a job as the ledger has it. Rounds with more than `limit` updates show them as one group; so do all
 * with more than one where there are many in all. `open` are the rounds whose groups somebody opened.
 */
export function graphOf(job, { limit = 6, open = new Set() } = {}) {
  const total = job.rounds.reduce((sum, round) => sum + round.updates.length, 0);
  const most = total > MANY || job.rounds.length > 12 ? 1 : limit;
  return {
    initial: { id: "initial", kind: "initial", digest: job.rounds[0]?.base ?? job.head },
    stages: job.rounds.map((round) => stageOf(round, most, open)),
    published: job.published ? { id: "published", kind: "published", digest: job.head } : null,
  };
}

/** Rounds of a graph whose updates are grouped, opened or not. */
export const grouped = (graph) => graph.stages.filter((stage) => stage.group).map((stage) => stage.round);

/** The edges of a graph as `{from, to, kind}` by node id: "base", "fold" (counted), "void" (did not count), "publish". */
export function edgesOf({ initial, stages, published }) {
  const edges = [];
  let from = initial.id;
  for (const { updates, group, end } of stages) {
    if (group) {
      edges.push({ from, to: group.id, kind: "base" }, { from: group.id, to: end.id, kind: outcome(end) });
    } else {
      for (const update of updates) {
        edges.push({ from, to: update.id, kind: "base" });
        if (update.reason === null) edges.push({ from: update.id, to: end.id, kind: outcome(end) });
        else if (end.kind !== "model") edges.push({ from: update.id, to: end.id, kind: "void" });
      }
      if (updates.length === 0) edges.push({ from, to: end.id, kind: "void" });
    }
    from = end.id;
  }
  if (published) edges.push({ from, to: published.id, kind: "publish" });
  return edges;
}

const outcome = (end) => (end.kind === "model" ? "fold" : "void");

const ENDS = { closed: "model", aborted: "aborted", open: "open" };

function stageOf(round, most, open) {
  const updates = round.updates.map(({ update, reason }) => ({
    id: `update-${round.round}-${update.hospital.toLowerCase()}`,
    kind: "update",
    round: round.round,
    hospital: update.hospital,
    digest: update.digest,
    samples: update.samples,
    reason,
  }));
  const rejected = updates.filter((update) => update.reason !== null).length;
  const group =
    updates.length > most
      ? {
          id: `group-${round.round}`,
          kind: "group",
          round: round.round,
          count: updates.length,
          rejected,
          open: open.has(round.round),
        }
      : null;
  const end = {
    id: `end-${round.round}`,
    kind: ENDS[round.status],
    round: round.round,
    digest: round.global_digest,
    counted: updates.length - rejected,
  };
  return { round: round.round, updates, group, end };
}
