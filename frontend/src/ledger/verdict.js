// What a verification came to, in words. Pure.

import { bytes, count } from "../format.js";
import { rounds, updates } from "./words.js";

export const ENDED = new Set(["done", "failed"]);

/** One sentence about a verification. */
export function verdictSentence({ state, verdict, detail }) {
  if (state === "failed") return `It could not be brought to an end: ${detail || "no reason is known"}.`;
  if (state === "queued") return "It waits for its turn.";
  if (state === "running" || !verdict) return "It is under way.";
  if (!verdict.ok) {
    const number = verdict.findings.length;
    return number === 1
      ? "One thing does not agree with the ledger."
      : `${count(number)} things do not agree with the ledger.`;
  }
  return `Recomputed bit for bit: ${rounds(verdict.rounds)}, ${updates(verdict.updates)}, ${signatures(verdict.signatures)}.`;
}

/** What was read for it, "" where nothing is known. */
export const verdictNote = (verdict) =>
  verdict
    ? `${bytes(verdict.bytes_read)} read and hashed${verdict.rejected ? `, ${updates(verdict.rejected)} left out` : ""}.`
    : "";

/** Findings by round, each as a sentence: `[{round, lines}]`, in order. `who` names hospitals. */
export function findingsByRound(findings, who) {
  const found = new Map();
  for (const { round, hospital, digest, what } of findings) {
    const subject = hospital ? `The update of ${who(hospital)}` : round === 0 ? "The job" : "The round's model";
    const lines = found.get(round) ?? [];
    lines.push({ line: `${subject}: ${what}`, digest });
    found.set(round, lines);
  }
  return [...found].sort(([one], [other]) => one - other).map(([round, lines]) => ({ round, lines }));
}

const signatures = (number) => `${count(number)} ${number === 1 ? "signature" : "signatures"}`;
