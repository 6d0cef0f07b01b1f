// A lineage's facts in short: where it began, who took part, what came out.

import { copyable } from "../copyable.js";
import { architecture, count, moment } from "../format.js";
import { html, nothing } from "../html.js";
import { siteName } from "../sites.js";
import { rounds, updates } from "./words.js";

/**
 * The panel. `job` is the ledger's, `known` the aggregator's, `model` the published version and
 * `publication` its event; these may be null.
 */
export function facts({ job, known, model, origin, names, publication }) {
  const closed = job.rounds.filter((round) => round.status === "closed");
  const aborted = job.rounds.filter((round) => round.status === "aborted").length;
  const all = job.rounds.flatMap((round) => round.updates);
  const left = all.filter((update) => update.reason !== null).length;
  const contributors = contributorsOf(job);
  const kind = architecture(known?.spec.architecture ?? model?.architecture ?? "");
  const base = job.rounds[0]?.base;
  return html`<section class="panel" aria-label="In short">
    <dl class="facts">
      <div>
        <dt>Initial weights</dt>
        <dd>${base ? copyable(base, "the initial weights' hash") : "–"} ${origin ? html`<span class="quiet">${origin}</span>` : nothing}</dd>
      </div>
      ${kind ? html`<div><dt>Network</dt><dd>${kind}</dd></div>` : nothing}
      <div>
        <dt>Rounds</dt>
        <dd>${rounds(closed.length)} closed${aborted ? `, ${count(aborted)} given up` : ""}</dd>
      </div>
      <div>
        <dt>Updates</dt>
        <dd>${updates(all.length)}${left ? `, ${count(left)} left out` : ""}</dd>
      </div>
      <div>
        <dt>Contributed</dt>
        <dd>${named(contributors.map((address) => siteName(names, address)))}</dd>
      </div>
      <div>
        <dt>${job.published ? "Published model" : "Newest model"}</dt>
        <dd>
          ${closed.length ? copyable(job.head, "the model's hash") : "none yet"}
          ${publication ? html`<span class="quiet">in block ${count(publication.block)}${publication.at ? `, ${moment(publication.at)}` : ""}</span>` : nothing}
          ${!job.published && closed.length ? html`<span class="badge">not published</span>` : nothing}
        </dd>
      </div>
    </dl>
  </section>`;
}

const FIRST = 6;

const named = (sites) => {
  if (sites.length === 0) return "nobody yet";
  const more = sites.length - FIRST;
  return more > 1 ? `${sites.slice(0, FIRST).join(", ")} and ${count(more)} more` : sites.join(", ");
};

/** Hospitals with an update in a closed round that was not left out, in the order in which they first came. */
export const contributorsOf = (job) => [
  ...new Set(
    job.rounds
      .filter((round) => round.status === "closed")
      .flatMap((round) => round.updates)
      .filter((update) => update.reason === null)
      .map(({ update }) => update.hospital),
  ),
];
