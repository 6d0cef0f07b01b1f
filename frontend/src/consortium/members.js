// Who holds which role; hospitals with their site's name, pictures and whether they are online.

import { copyable } from "../copyable.js";
import { count, duration, short } from "../format.js";
import { html, nothing } from "../html.js";
import { images } from "../ledger/words.js";
import { isOnline } from "../sites.js";
import { ROLES } from "./roles.js";

/** The sections of members, one a role. `acts` is null for whoever may only look; `self` is the looker's address. */
export function members({ members: held, nodes }, { acts, self }) {
  const byAddress = new Map((nodes ?? []).map((node) => [node.address, node]));
  const order = ["hospital", "clinician", "auditor", "admin", "coordinator"];
  const roles = [...ROLES].sort((one, other) => order.indexOf(one.name) - order.indexOf(other.name));
  return html`<section class="panel" aria-labelledby="members">
    <h2 id="members">Members</h2>
    ${nodes === null ? html`<p class="problem">The names of hospitals cannot be had at the moment; addresses can.</p>` : nothing}
    ${roles.map((role) => group(role, held[role.name], byAddress, acts, self))}
  </section>`;
}

function group(role, holders, nodes, acts, self) {
  return html`<section class="role" aria-labelledby="role-${role.name}">
    <h3 id="role-${role.name}">${role.title} <span class="badge">${count(holders.length)}</span></h3>
    <p class="quiet small-text">${role.may}</p>
    ${
      holders.length === 0
        ? html`<p class="quiet">Nobody yet.${acts ? " Grant the role below, or to somebody who applies." : ""}</p>`
        : html`<ul class="rows">
            ${holders.map((member) => row(role, member, nodes.get(member.address), acts, self))}
          </ul>`
    }
  </section>`;
}

function row(role, member, node, acts, self) {
  const { address } = member;
  const name = role.name === "hospital" ? node?.registration.site : undefined;
  const called = name ?? short(address);
  const revoke = () => acts.change({ role: role.name, account: address, granted: false, name: called });
  return html`<li class="person">
    <div class="grow">
      ${name ? html`<strong class="whole">${name}</strong> ` : nothing}${copyable(address, `the address of ${called}`)}
      ${address === self ? html`<span class="badge live">you</span>` : nothing}
      ${role.name === "hospital" ? presence(node) : nothing}
    </div>
    ${
      acts
        ? html`<button class="danger small" aria-label="Revoke ${role.one} of ${called}" @click=${revoke}>Revoke</button>`
        : nothing
    }
  </li>`;
}

function presence(node) {
  if (!node) return html`<p class="quiet small-text">Its node has never connected.</p>`;
  const { registration, seen_seconds_ago: ago } = node;
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const seen = isOnline(node)
    ? html`<span class="badge good">online</span>`
    : html`<span class="badge">last seen ${duration(ago)} ago</span>`;
  return html`${seen}
    <p class="quiet small-text">
      ${images(sum(registration.training_images))} to train on, ${count(sum(registration.held_out_images))} held out
      ${registration.source ? html`· ${registration.source}` : nothing}
    </p>`;
}
