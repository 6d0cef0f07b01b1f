// Hashes, addresses and signatures: small, whole where there is room, and to be copied with one press.

import { short } from "./format.js";
import { html } from "./html.js";

const SAID_MS = 2_000;

/** A value in its short form with a button that copies it whole; `what` names it for those who do not see it. */
export function copyable(value, what, { whole = false } = {}) {
  return html`<span class="copyable">
    <code class="whole" title=${value}>${whole ? value : short(value)}</code
    ><button class="copy" type="button" aria-label="Copy ${what}" @click=${(event) => copy(event.currentTarget, value)}>copy</button>
  </span>`;
}

async function copy(button, value) {
  const said = await navigator.clipboard.writeText(value).then(
    () => "copied",
    () => "not allowed",
  );
  button.textContent = said;
  button.setAttribute("aria-live", "polite");
  setTimeout(() => {
    button.textContent = "copy";
  }, SAID_MS);
}
