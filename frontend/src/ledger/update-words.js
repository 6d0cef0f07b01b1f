// What an update's page says in words. Pure.

import { duration } from "../format.js";
import { reason, reasonMeaning } from "../reasons.js";

/** What is wrong with a query that should name an update, as a sentence; "" where nothing is. */
export function updateProblem({ job, round, hospital }) {
  const whole = /^[1-9]\d{0,9}$/.test(round) && Number(round) < 2 ** 32;
  if (/^[0-9a-f]{64}$/.test(job) && whole && /^0x[0-9a-fA-F]{40}$/.test(hospital)) return "";
  return "This address names no update.";
}

/** What became of an update: `{word, tone, sentence, digest}`, the digest of the model it is part of, if any. */
export function inclusion({ reason: left }, { round, status, global_digest: digest }) {
  if (left !== null) {
    const sentence = `It counts nowhere: ${reason(left)}. ${reasonMeaning(left)}`;
    return { word: "left out", tone: "bad", sentence, digest: null };
  }
  if (status === "closed") {
    return { word: "counted", tone: "good", sentence: `It was folded into the model of round ${round}.`, digest };
  }
  if (status === "aborted") {
    const sentence = `Round ${round} was given up, so nothing of it counts; the model stayed as it was.`;
    return { word: "void", tone: "warn", sentence, digest: null };
  }
  return { word: "waiting", tone: "live", sentence: `It is recorded; round ${round} is still open.`, digest: null };
}

/** Seconds from the relay's receiving an update to its confirmation, in words; "" where nobody measured them. */
export function latency(relayed) {
  if (!relayed) return "";
  return duration((Date.parse(relayed.confirmed_at) - Date.parse(relayed.received_at)) / 1000);
}
