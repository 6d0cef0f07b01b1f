// What an administrator may do to a running job: pause, resume, stop. Stopping asks first.

import { html, nothing, render } from "../html.js";
import { ENDED } from "../jobs.js";
import { sentence } from "../problem.js";

const BUSY = { pause: "Pausing…", resume: "Resuming…", stop: "Stopping…" };

/** Controls of one job; `changed` is called when they look different. */
export class Controls {
  #api;
  #job;
  #changed;
  #busy = "";
  #asked = "";
  #problem = "";

  constructor(api, job, changed) {
    this.#api = api;
    this.#job = job;
    this.#changed = changed;
  }

  /** The panel for a job's view. */
  template(view) {
    const { paused, phase } = view;
    const idle = ENDED.has(phase) || this.#busy !== "" || this.#asked === "stop";
    const verb = paused ? "resume" : "pause";
    return html`<section class="panel controls" aria-labelledby="controls-title">
      <h2 id="controls-title">Administration</h2>
      <div class="control">
        <button ?disabled=${idle} aria-describedby="pause-what" @click=${() => this.#ask(verb)}>
          ${paused ? "Resume" : "Pause"}
        </button>
        <p id="pause-what" class="quiet">
          ${
            paused
              ? "The job goes on with its next round."
              : "The open round is brought to its end; no other is opened until you resume."
          }
        </p>
      </div>
      <div class="control">
        <button class="danger" ?disabled=${idle} aria-describedby="stop-what" @click=${() => this.#confirm(view)}>
          Stop…
        </button>
        <p id="stop-what" class="quiet">The job ends for good: an open round is given up, and no model is published.</p>
      </div>
      <div role="status" class="answer">
        ${this.#busy ? html`<p class="busy">${BUSY[this.#busy]}</p>` : this.#awaited(view)}
        ${this.#problem ? html`<p class="problem">${this.#problem}</p>` : nothing}
      </div>
    </section>`;
  }

  // What was asked for and has not happened yet.
  #awaited({ paused, phase }) {
    if (this.#asked === "stop") return html`<p>The job was asked to stop.</p>`;
    const isIdle = phase === "opening" || phase === "baseline";
    return paused && !isIdle ? html`<p>The open round is brought to its end.</p>` : nothing;
  }

  async #ask(verb) {
    this.#busy = verb;
    this.#problem = "";
    this.#changed();
    try {
      await this.#api.call("aggregator", `/v1/jobs/${this.#job}/${verb}`, { method: "POST" });
      this.#asked = verb;
    } catch (error) {
      this.#problem = sentence(error);
    }
    this.#busy = "";
    this.#changed();
  }

  #confirm({ spec }) {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "stop-title");
    const yes = () => {
      dialog.close();
      this.#ask("stop");
    };
    render(
      html`<h2 id="stop-title">Stop “${spec.name}”?</h2>
        <p>
          It ends for good. What is on the ledger stays there; an open round is given up, and no model is published. To
          go on later, pause it instead.
        </p>
        <div class="actions">
          <button autofocus @click=${() => dialog.close()}>Keep it running</button>
          <button class="danger" @click=${yes}>Stop the job</button>
        </div>`,
      dialog,
    );
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
}
