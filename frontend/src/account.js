// The corner of every page that says who is signed in, the way in, the way out, and what changed in the wallet meanwhile.

import { short } from "./format.js";
import { html, nothing, render } from "./html.js";
import { network } from "./network.js";
import { notice } from "./notices.js";
import { sentence } from "./problem.js";
import { discover, remember, remembered } from "./wallets.js";

/** Show the account in `corner` and keep it true. */
export function showAccount(corner, session) {
  const update = () => {
    render(view(session), corner);
    notice("session", session.ended ? html`<p>Your session has ended. Please sign in again.</p>` : null);
  };
  session.addEventListener("change", () => {
    update();
    watchWallet(session);
  });
  update();
}

/** Open the sign-in dialog. */
export async function signIn(session) {
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-labelledby", "sign-in-title");
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  const state = { wallets: undefined, busy: "", problem: "", wrongNetwork: null };
  const update = (change) => {
    Object.assign(state, change);
    render(signInView(state, { choose, switchNetwork, close: () => dialog.close() }), dialog);
  };

  async function choose(wallet) {
    update({ busy: `Waiting for ${wallet.name}…`, problem: "", wrongNetwork: null });
    try {
      const address = await wallet.connect();
      const wanted = await network();
      if ((await wallet.chain()) !== wanted.chainId) return update({ busy: "", wrongNetwork: { wallet, wanted } });
      update({ busy: `Please sign the message in ${wallet.name}. It costs nothing.` });
      remember(wallet); // before the session changes: what watches the wallet from then on looks it up
      await session.signIn(wallet, address);
      dialog.close();
    } catch (error) {
      update({ busy: "", problem: sentence(error) });
    }
  }

  async function switchNetwork() {
    const { wallet, wanted } = state.wrongNetwork;
    update({ busy: `Waiting for ${wallet.name}…`, problem: "" });
    try {
      await wallet.switchTo(wanted);
      await choose(wallet);
    } catch (error) {
      update({ busy: "", problem: sentence(error) });
    }
  }

  update({});
  dialog.showModal();
  update({ wallets: await discover() });
}

/** The wallet that the session was signed in with, on the right account and network. Throws `Error` with a sentence. */
export async function signingWallet(session) {
  const wallet = await remembered();
  if (!wallet) throw new Error("The wallet you signed in with is not there any more. Sign in again.");
  const address = await wallet.connect();
  if (address.toLowerCase() !== session.current.address.toLowerCase()) {
    throw new Error(
      `${wallet.name} shows ${short(address)}, and you are signed in as ${short(session.current.address)}. ` +
        "Choose that account in the wallet, or sign in anew.",
    );
  }
  const wanted = await network();
  if ((await wallet.chain()) !== wanted.chainId) await wallet.switchTo(wanted);
  return wallet;
}

let stopWatching = () => {};
let watches = 0;

async function watchWallet(session) {
  const watch = ++watches;
  stopWatching();
  stopWatching = () => {};
  notice("account", null);
  notice("network", null);
  if (!session.current) return;
  const wallet = await remembered();
  if (!wallet || !session.current || watch !== watches) return;
  const account = (address) => notice("account", accountNotice(session, wallet, address));
  const chain = async (id) => notice("network", networkNotice(wallet, id, await network().catch(() => null)));
  stopWatching = wallet.watch({ account, chain });
  try {
    account(await wallet.account());
    await chain(await wallet.chain());
  } catch {
    // A wallet that does not answer says nothing about the session.
  }
}

function accountNotice(session, wallet, address) {
  if (!address || !session.current || address.toLowerCase() === session.current.address.toLowerCase()) return null;
  const again = async () => {
    try {
      await session.signOut();
      await signIn(session);
    } catch (error) {
      notice("account", html`<p>${sentence(error)}</p>`);
    }
  };
  return html`<p>
      ${wallet.name} now shows account <code>${short(address)}</code>; here you are still signed in as
      <code>${short(session.current.address)}</code>.
    </p>
    <button @click=${again}>Sign in as ${short(address)}</button>`;
}

function networkNotice(wallet, id, wanted) {
  if (!wanted || id === wanted.chainId) return null;
  const go = () => wallet.switchTo(wanted).catch((error) => notice("network", html`<p>${sentence(error)}</p>`));
  return html`<p>${wallet.name} is on another network (chain ${id}). Signatures here need chain ${wanted.chainId}.</p>
    <button @click=${go}>Switch network</button>`;
}

// Only the server can take the cookie back.
function stillSignedIn(error) {
  return html`<p>
    <strong>You are still signed in at the server.</strong> ${sentence(error)} This page has forgotten you, but the next
    one that is opened here is yours again: reload it, and sign out there.
  </p>`;
}

function view(session) {
  if (session.current === undefined) return html`<span class="quiet" aria-hidden="true">…</span>`;
  if (session.current === null) return html`<button class="primary" @click=${() => signIn(session)}>Sign in</button>`;
  const { address, roles } = session.current;
  const out = () => session.signOut().catch((error) => notice("account", stillSignedIn(error)));
  return html`<details class="menu">
    <summary><span class="dot" aria-hidden="true"></span><code>${short(address)}</code></summary>
    <div class="menu-body">
      <p class="quiet">Signed in as</p>
      <p><code class="whole">${address}</code></p>
      <p>${roles.length ? roles.map((role) => html`<span class="badge">${role}</span> `) : "no role yet"}</p>
      <button @click=${out}>Sign out</button>
    </div>
  </details>`;
}

function signInView({ wallets, busy, problem, wrongNetwork }, { choose, switchNetwork, close }) {
  return html`<form method="dialog" class="dialog-head">
      <h2 id="sign-in-title">Sign in with your wallet</h2>
      <button class="icon" aria-label="Close" @click=${close}>✕</button>
    </form>
    <p>You sign a message with your key. It sends no transaction and costs nothing.</p>
    <div role="status" class="stack">
      ${busy ? html`<p class="busy">${busy}</p>` : nothing}
      ${problem ? html`<p class="problem">${problem}</p>` : nothing}
      ${
        wrongNetwork
          ? html`<p>
                ${wrongNetwork.wallet.name} is on another network. The consortium's ledger is on chain
                ${wrongNetwork.wanted.chainId}.
              </p>
              <button class="primary" ?disabled=${busy} @click=${switchNetwork}>Switch network</button>`
          : nothing
      }
    </div>
    ${wallets === undefined ? html`<p class="busy">Looking for wallets…</p>` : walletList(wallets, busy, choose)}`;
}

function walletList(wallets, busy, choose) {
  if (wallets.length === 0) {
    return html`<p class="problem">No wallet was found in this browser.</p>
      <p>
        Install <a href="https://metamask.io/download/" rel="noreferrer">MetaMask</a> or another wallet that announces
        itself (EIP-6963), then reload this page.
      </p>`;
  }
  return html`<ul class="wallets">
    ${wallets.map(
      (wallet) => html`<li>
        <button ?disabled=${Boolean(busy)} @click=${() => choose(wallet)}>
          ${wallet.icon ? html`<img src=${wallet.icon} alt="" width="24" height="24" />` : nothing} ${wallet.name}
        </button>
      </li>`,
    )}
  </ul>`;
}
