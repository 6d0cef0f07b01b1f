// The dialog in which a role is granted or taken: what will happen, each step as it happens, and how it ended.

import { signingWallet } from "../account.js";
import { copyable } from "../copyable.js";
import { count, short } from "../format.js";
import { html, nothing, render } from "../html.js";
import { network } from "../network.js";
import { sentence } from "../problem.js";
import { changeRole, LAST_ADMIN, STEPS } from "./change.js";
import { roleNamed } from "./roles.js";

/**
 * Grant (`granted`) or revoke a role of an account that is called `name`. Granting starts at once: the wallet asks
 * anyway. Revoking first says what will be lost. `done` is called once the ledger has it; `holders` hold the role now.
 */
export function openChange({ role, account, granted, name }, { api, session, holders, done }) {
  const dialog = document.createElement("dialog");
  dialog.className = "change";
  dialog.setAttribute("aria-labelledby", "change-title");
  document.body.append(dialog);
  const back = document.activeElement;
  const givenUp = new AbortController();
  const self = account.toLowerCase() === session.current.address.toLowerCase();
  const last = role === "admin" && !granted && holders.length < 2;
  const state = { step: "", wallet: "", receipt: null, problem: "" };
  const show = (change = {}) => {
    Object.assign(state, change);
    render(view(state, { role, account, granted, name, self, last }, { go, close: () => dialog.close() }), dialog);
  };

  async function go() {
    show({ step: "check", problem: "", receipt: null });
    const tell = (step, detail) =>
      show(step === "sign" ? { step, wallet: detail } : step === "done" ? { step, receipt: detail } : { step });
    try {
      const wallet = () => signingWallet(session);
      const by = session.current.address;
      await changeRole({ role, account, granted }, { api, by, wallet, network, tell, signal: givenUp.signal });
      await done();
    } catch (error) {
      if (error.code === "access_control_unauthorized_account") session.rolesChanged();
      show({ step: state.step === "done" ? "done" : "", problem: sentence(error) });
    }
  }

  dialog.addEventListener("cancel", (event) => {
    if (state.step === "write") event.preventDefault(); // it is on its way, and how it ends should be seen
  });
  dialog.addEventListener("close", () => {
    givenUp.abort();
    dialog.remove();
    if (back?.isConnected) back.focus();
  });
  show();
  dialog.showModal();
  if (granted) go();
}

function view(state, change, { go, close }) {
  const { step, problem } = state;
  const { one, loss } = roleNamed(change.role);
  const title = change.granted ? `Grant ${one} to ${change.name}` : `Revoke ${one} of ${change.name}`;
  const began = step !== "" || problem !== "";
  return html`<div class="dialog-head">
      <h2 id="change-title" class="whole">${title}</h2>
      <button class="icon" aria-label="Close" ?disabled=${step === "write"} @click=${close}>✕</button>
    </div>
    <p class="quiet small-text">${copyable(change.account, "the address", { whole: true })}</p>
    ${!change.granted && step !== "done" ? lossOf(loss, change) : nothing}
    <div role="status" class="stack">
      ${step ? steps(state, change.granted) : nothing} ${problem ? html`<p class="problem">${problem}</p>` : nothing}
    </div>
    <div class="actions">
      ${step === "" && !change.last ? startButton(change.granted, began, go) : nothing}
      <button ?disabled=${step === "write"} @click=${close}>${closeLabel(step, change)}</button>
    </div>`;
}

const closeLabel = (step, { last }) => (step === "done" || last ? "Close" : step === "sign" ? "Give it up" : "Cancel");

const startButton = (granted, began, go) =>
  html`<button class=${granted ? "primary" : "danger"} @click=${go}>
    ${began ? "Try again" : granted ? "Sign in wallet" : "Revoke it"}
  </button>`;

function lossOf(loss, { last, self, role }) {
  if (last) return html`<p class="problem">${LAST_ADMIN}</p>`;
  return html`<p>${loss}</p>
    ${self ? html`<p class="problem">This is your own account: ${role === "admin" ? "you will not be able to undo it." : "you lose it yourself."}</p>` : nothing}
    <p class="quiet small-text">What is on the ledger stays there. The role can be granted again.</p>`;
}

function steps({ step, wallet, receipt }, granted) {
  const labels = {
    check: "Looking at the ledger and your wallet",
    sign: wallet ? `Sign in ${wallet}; it costs nothing` : "Sign in your wallet",
    write: "Writing to the ledger",
    done: receipt ? `${granted ? "Granted" : "Revoked"} in block ${count(receipt.block)}` : "On the ledger",
  };
  const at = STEPS.indexOf(step);
  return html`<ol class="progress-steps">
    ${STEPS.map((name, index) => {
      const state = index < at || step === "done" ? "past" : index === at ? "now" : "ahead";
      const mark = state === "past" ? "✓" : state === "now" ? "•" : "";
      return html`<li class=${state} aria-current=${state === "now" ? "step" : nothing}>
        <span class="mark" aria-hidden="true">${mark}</span>
        <span class=${state === "now" ? "busy" : ""}>${labels[name]}${state === "now" ? "…" : ""}</span>
        ${name === "done" && receipt ? html`<span class="quiet small-text">transaction <code title=${receipt.transaction}>${short(receipt.transaction)}</code></span>` : nothing}
      </li>`;
    })}
  </ol>`;
}
