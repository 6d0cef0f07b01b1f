// The panels of an update's page: what was signed, how it was recorded, what the hospital measured.

import { copyable } from "../copyable.js";
import { bytes, count, decimal, duration, encodingSentence, moment, percent, privacyWords } from "../format.js";
import { html, nothing } from "../html.js";
import { latency } from "./update-words.js";

const fact = (name, value, what) =>
  html`<div><dt>${name}</dt><dd>${value}</dd>${what ? html`<dd class="quiet small-text">${what}</dd>` : nothing}</div>`;

/** What the hospital signed with its own key. */
export function statement({ update, signature }) {
  const hidden = signature === "0x00";
  return html`<section class="panel" aria-labelledby="statement">
    <h2 id="statement">What the hospital signed</h2>
    <dl class="facts explained">
      ${fact("Update", copyable(update.digest, "the update's hash"), "The hash of the exact bytes of the update's file. Another file has another hash.")}
      ${fact("Base", copyable(update.base, "the base's hash"), "The hash of the model that training started from; the contract takes no other.")}
      ${fact("Images", count(update.samples), "On how many the hospital trained. It weighs the update in the average by this.")}
      ${fact("Metrics", copyable(update.metrics, "the metrics' hash"), "The hash of the measurements below, so that they cannot be changed afterwards.")}
      ${fact("Hospital", copyable(update.hospital, "the hospital's address"), "The account whose key signed. Nobody but the hospital has it.")}
      ${fact(
        "Signature",
        hidden ? "not readable" : copyable(signature, "the signature"),
        hidden
          ? "It came through a wallet in a form that hides it. The contract checked it all the same."
          : "By it, the contract recognised the hospital. Nobody else can make one that fits.",
      )}
    </dl>
  </section>`;
}

/** How it came onto the ledger. `at` and `relayed` may be null. */
export function recording({ transaction, block }, { at, relayed }) {
  const took = latency(relayed);
  return html`<section class="panel" aria-labelledby="recording">
    <h2 id="recording">How it was recorded</h2>
    <dl class="facts explained">
      ${fact("Block", count(block), "Its place on the ledger. What is in a block stays.")}
      ${fact("When", at ? moment(at) : "not known", "The block's own time.")}
      ${fact("Transaction", copyable(transaction, "the transaction's hash"), "What carried it; find it by this in any explorer of the chain.")}
      ${fact("Confirmed after", took || "not known", took ? "From reaching the relay until it was in a block." : "It did not come through this relay, or too long ago.")}
      ${relayed ? fact("Gas", count(relayed.gas), "What the chain charged the relay; hospitals pay nothing.") : nothing}
    </dl>
  </section>`;
}

/** What the node measured while it made the update; null where the relay lost it. */
export function measurements(metrics) {
  return html`<section class="panel" aria-labelledby="measurements">
    <h2 id="measurements">What the hospital measured</h2>
    ${
      metrics === null
        ? html`<p class="quiet">The measurements themselves are not here any more; their hash on the ledger is.</p>`
        : html`<dl class="facts explained">
            ${metrics.privacy ? fact("Privacy", privacyWords(metrics.privacy), "What the hospital's updates of this job, up to this one, cost its lesions together, by its own account: with one lesion more or fewer they would have come out as they did with nearly the same probability. Loss and accuracy are not told: no noise would be on them.") : nothing}
            ${metrics.loss === undefined ? nothing : fact("Loss", decimal(metrics.loss), "How wrong the model was on the hospital's own training images, on average. Lower is better.")}
            ${metrics.accuracy === undefined ? nothing : fact("Accuracy", percent(metrics.accuracy), "How many of those images it got right. Not a measure on unseen lesions.")}
            ${fact("Images", count(metrics.images), `Of ${count(metrics.lesions)} lesions${metrics.skipped_images ? `; ${count(metrics.skipped_images)} could not be read` : ""}.`)}
            ${fact("Epochs", count(metrics.epochs), "How often training went through all images.")}
            ${fact("Training", duration(metrics.seconds_training), "On the hospital's own machine.")}
            ${fact("Download", `${bytes(metrics.bytes_download)} in ${duration(metrics.seconds_download)}`, "The base model, to the hospital.")}
            ${metrics.encoded ? fact("Encoding", `${encodingSentence(metrics.encoded.encoding)}: ${bytes(metrics.encoded.bytes)} of ${bytes(metrics.encoded.bytes_plain)}`, "What was sent; with the base model it says every bit of what was averaged.") : nothing}
            ${fact("Upload", `${bytes(metrics.bytes_upload)} in ${duration(metrics.seconds_upload)}`, "Weights only; no picture left the hospital.")}
          </dl>`
    }
  </section>`;
}
