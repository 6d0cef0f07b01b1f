// The one way pages make HTML: lit-html, which escapes every value and touches only what changed.

export { html, nothing, render, svg } from "lit-html";
export { repeat } from "lit-html/directives/repeat.js";
