// What every page does the same: who is signed in, whether they may see it, and what they should do where they may not.

import { showAccount, signIn } from "./account.js";
import { Api } from "./api.js";
import { html, nothing, render } from "./html.js";
import { sentence } from "./problem.js";
import { Session } from "./session.js";

export const session = new Session();
export const api = new Api(session);

/**
 * Run a page. `start(view, session)` is called once somebody may see it, with the element `#view`; it may return a
 * function that ends it. `roles` are those that may see it (any role where none is named), `what` names the page in
 * sentences, `open` says that a page shows something to everybody and deals with the rest itself.
 */
export function page({ what, roles = [], open = false, start }) {
  const view = document.getElementById("view");
  showAccount(document.getElementById("account"), session);
  let stop;
  let seenBy;

  const show = () => {
    const may = open || session.holds(...roles);
    const who = may ? (session.current?.address ?? "anybody") + (open ? String(session.current?.roles) : "") : null;
    if (who !== null && who === seenBy) return;
    stop?.();
    stop = undefined;
    seenBy = who;
    if (may) {
      render(nothing, view);
      stop = start(view, session);
    } else if (session.current !== undefined) {
      render(session.current === null ? signedOut(what) : lacking(what, roles), view);
    }
  };

  session.addEventListener("change", show);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && session.current) session.refresh().catch(() => {});
  });
  session.refresh().catch((error) => render(html`<p class="problem">${sentence(error)}</p>`, view));
}

function signedOut(what) {
  return html`<section class="panel empty">
    <h2>Sign in to see ${what}</h2>
    <p>You need a wallet, such as MetaMask, with an account that the consortium knows.</p>
    <button class="primary" @click=${() => signIn(session)}>Sign in</button>
  </section>`;
}

function lacking(what, roles) {
  const { address, roles: held } = session.current;
  if (held.length === 0) return application(address);
  return html`<section class="panel empty">
    <h2>Your account may not see ${what}</h2>
    <p>
      That needs the role ${roles.map((role, at) => html`${at ? " or " : nothing}<strong>${role}</strong>`)}; your account
      holds ${held.join(", ")}. An administrator of the consortium grants roles.
    </p>
  </section>`;
}

function application(address) {
  const file = async (event) => {
    event.preventDefault();
    const form = event.target;
    const answer = form.querySelector("output");
    try {
      await api.json("auth", "/v1/applications", { json: Object.fromEntries(new FormData(form)) });
      answer.textContent = "Asked. An administrator sees it under Consortium; come back once it is granted.";
    } catch (error) {
      answer.textContent = sentence(error);
    }
  };
  return html`<section class="panel">
    <h2>Your account has no role yet</h2>
    <p>
      You are signed in as <code class="whole">${address}</code>. What you may do is on the ledger, and an administrator
      decides. Ask for a role here:
    </p>
    <form class="fields" @submit=${file}>
      <label>
        Role
        <select name="role">
          <option value="clinician">Clinician: ask the model about a picture</option>
          <option value="auditor">Auditor: check the ledger and recompute models</option>
          <option value="hospital">Hospital: take part in training</option>
        </select>
      </label>
      <label>Who are you? <input name="name" required maxlength="100" autocomplete="organization" /></label>
      <label>Anything an administrator should know <input name="note" maxlength="500" /></label>
      <div class="actions"><button class="primary">Ask for it</button> <output></output></div>
    </form>
  </section>`;
}
