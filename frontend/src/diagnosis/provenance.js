// Where a model comes from, gathered from the services that know: its register, its job, the hospitals' names.

import { sentence } from "../problem.js";
import { siteName, sitesOf } from "../sites.js";
import { recognised } from "./answer.js";

/**
 * `{version, job, hospitals, recognised, problem}`. What cannot be had is null, `problem` then says why in a sentence;
 * a picture's answer must not fail because its model's history does not load. Throws only where `signal` aborts.
 */
export async function provenance(api, digest, job, signal) {
  const ask = (service, path) => api.json(service, path, { signal });
  const [version, view, nodes] = await Promise.allSettled([
    ask("model", `/v1/models/${digest}`),
    ask("aggregator", `/v1/jobs/${job}`),
    ask("aggregator", "/v1/nodes"),
  ]);
  signal.throwIfAborted();
  const failed = [version, view, nodes].find(({ status }) => status === "rejected");
  return {
    version: version.value ?? null,
    job: view.value ?? null,
    hospitals: version.value ? named(version.value.contributors, nodes.value ?? []) : null,
    recognised: recognised(view.value, digest),
    problem: failed ? sentence(failed.reason) : "",
  };
}

/** Contributors with the names of their sites: `[{address, site}]`; a site nobody knows is its shortened address. */
export function named(contributors, nodes) {
  const known = sitesOf(nodes);
  return contributors.map((address) => ({ address, site: siteName(known, address) }));
}
