// Sentences at the top of a page that stay until what they are about has changed.

import { html, render } from "./html.js";

const current = new Map();

/** Show `content` (a template) under `key`, or take it away with null. */
export function notice(key, content) {
  if (content === null) current.delete(key);
  else current.set(key, content);
  const place = document.getElementById("notices");
  render(
    [...current.values()].map((item) => html`<div class="notice">${item}</div>`),
    place,
  );
}
