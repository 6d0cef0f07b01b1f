// The card of a published model: asked for when somebody wants it, shown as the text that it is, saved as a file.

import { download } from "../download.js";
import { html, nothing, render } from "../html.js";
import { sentence } from "../problem.js";

const TYPE = "text/markdown;charset=utf-8";

/** The card of one job's model; `changed` is called when its button looks different. */
export class Card {
  #api;
  #job;
  #changed;
  #busy = false;
  #problem = "";

  constructor(api, job, changed) {
    this.#api = api;
    this.#job = job;
    this.#changed = changed;
  }

  /** The button that opens it, and what went wrong with that. */
  template() {
    return html`<button ?disabled=${this.#busy} @click=${() => this.#open()}>
        ${this.#busy ? "Asking for its card…" : "Read its card"}
      </button>
      ${this.#problem ? html`<span class="problem" role="status">${this.#problem}</span>` : nothing}`;
  }

  async #open() {
    this.#busy = true;
    this.#problem = "";
    this.#changed();
    try {
      const answer = await this.#api.call("aggregator", `/v1/jobs/${this.#job}/card`);
      this.#show(await answer.text());
    } catch (error) {
      this.#problem = sentence(error);
    }
    this.#busy = false;
    this.#changed();
  }

  #show(text) {
    const dialog = document.createElement("dialog");
    dialog.className = "wide";
    dialog.setAttribute("aria-labelledby", "card-title");
    render(
      html`<h2 id="card-title">The model's card</h2>
        <pre tabindex="0" aria-label="The card, in Markdown">${text}</pre>
        <div class="actions">
          <button @click=${() => download(text, `concilia-card-${this.#job.slice(0, 12)}.md`, TYPE)}>Save it</button>
          <button class="primary" autofocus @click=${() => dialog.close()}>Close</button>
        </div>`,
      dialog,
    );
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
}
