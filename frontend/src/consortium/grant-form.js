// Granting a role to any account, by its address.

import { short } from "../format.js";
import { html } from "../html.js";
import { sentence } from "../problem.js";
import { lookUp } from "./change.js";
import { article, ROLES } from "./roles.js";

/** The form. The address is looked up, and its checksum checked, before any wallet opens. */
export function grantForm(api, { change }) {
  return html`<section class="panel" aria-labelledby="grant">
    <h2 id="grant">Grant a role</h2>
    <form class="fields" novalidate @submit=${(event) => submit(event, api, change)} @input=${forget}>
      <label>
        Address of the account
        <input name="account" autocomplete="off" spellcheck="false" maxlength="60" placeholder="0x…" aria-describedby="grant-problem" />
      </label>
      <label>
        Role
        <select name="role">
          ${ROLES.map((role) => html`<option value=${role.name} ?selected=${role.name === "clinician"}>${role.one}</option>`)}
        </select>
      </label>
      <p class="wide problem" id="grant-problem" role="alert" hidden></p>
      <div class="actions"><button class="primary">Grant it</button></div>
    </form>
  </section>`;
}

async function submit(event, api, change) {
  event.preventDefault();
  const form = event.currentTarget;
  const { account, role } = form.elements;
  const button = form.querySelector("button");
  forget(event);
  button.disabled = true;
  try {
    const known = await lookUp(api, account.value);
    const chosen = ROLES.find((each) => each.name === role.value);
    if (known.roles.includes(role.value)) return say(form, `This account is ${article(chosen.one)} already.`);
    change({ role: role.value, account: known.address, granted: true, name: short(known.address) });
    form.reset();
  } catch (error) {
    say(form, sentence(error));
    account.focus();
  } finally {
    button.disabled = false;
  }
}

function say(form, text) {
  const problem = form.querySelector("#grant-problem");
  problem.textContent = text;
  problem.hidden = false;
  form.elements.account.setAttribute("aria-invalid", "true");
}

function forget({ currentTarget: form }) {
  form.querySelector("#grant-problem").hidden = true;
  form.elements.account.removeAttribute("aria-invalid");
}
