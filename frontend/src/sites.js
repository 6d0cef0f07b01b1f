// Hospitals as their nodes tell of themselves: what each site calls itself, beside the address that the ledger knows, and
// whether it is there.

import { short } from "./format.js";
import { html } from "./html.js";

const ONLINE_SECONDS = 60;

/** Sites by address as the aggregator knows them. A service that does not answer leaves the addresses bare. */
export async function sites(api) {
  const nodes = await api.json("aggregator", "/v1/nodes").catch(() => []);
  return sitesOf(nodes);
}

/** Sites by address in lower case, from registered nodes. */
export const sitesOf = (nodes) => new Map(nodes.map((node) => [node.address.toLowerCase(), node.registration.site]));

/** "Utrecht", or the shortened address where no name is known. */
export const siteName = (known, address) => known.get(address.toLowerCase()) ?? short(address);

/** A hospital as people should see it: its name with the shortened address. */
export function hospital(known, address) {
  const name = known.get(address.toLowerCase());
  return name === undefined
    ? html`<code title=${address}>${short(address)}</code>`
    : html`<strong class="site">${name}</strong> <code class="quiet" title=${address}>${short(address)}</code>`;
}

/** Whether a registered node was heard of within the last minute; nodes say so every fifteen seconds. */
export const isOnline = (node) => node.seen_seconds_ago < ONLINE_SECONDS;
