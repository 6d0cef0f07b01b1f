// One picture, one model, one answer: what the page knows, and that nothing of one picture shows with another.
//
// A picture lives in this object's memory and nowhere else: no storage, no address, not even its file's name.

import { sentence } from "../problem.js";
import { ranked } from "./answer.js";
import { failure } from "./failure.js";
import { HEAD_BYTES, objection, tooManyPixels } from "./picture.js";
import { provenance } from "./provenance.js";

const UNREADABLE = "That cannot be read. Choose one JPEG or PNG picture.";

/** What a clinician does and gets. Calls `changed` after each change. `urls` makes and revokes object URLs. */
export class Consultation {
  /** Published models, newest first; undefined before they are known. */
  models = undefined;
  /** Names of jobs by id, as far as they are known. */
  jobs = {};
  /** Why the models are not known, in a sentence. */
  modelsProblem = "";
  /** Digest of the model that is asked. */
  digest = null;
  /** `{blob, url}` */
  picture = null;
  /** Why the file that was chosen is no picture to ask about. */
  objection = "";
  asking = false;
  /** `{prediction, classes, at, origin}`; `origin` is undefined until it is known, see `provenance`. */
  answer = null;
  /** See `failure`. */
  failure = null;
  /** Code of the class whose map is shown, and how strongly (0..1). */
  shown = null;
  strength = 0.7;

  #api;
  #changed;
  #urls;
  #turn = new AbortController();

  constructor(api, changed, urls = URL) {
    this.#api = api;
    this.#changed = changed;
    this.#urls = urls;
  }

  /** Ask which models there are, and keep the one chosen if it is still among them. */
  async loadModels() {
    this.#set({ modelsProblem: "" });
    try {
      const models = await this.#api.json("model", "/v1/models");
      const digest = models.some((model) => model.digest === this.digest) ? this.digest : (models[0]?.digest ?? null);
      if (digest !== this.digest) this.#newTurn();
      this.#set({ models, digest });
      if (models.length > 1) await this.#nameJobs();
    } catch (error) {
      this.#set({ modelsProblem: sentence(error) });
    }
  }

  /** Take a file in place of whatever was there; `objection` says why not, where it cannot be. */
  async choose(file) {
    this.clear();
    const { signal } = this.#turn;
    try {
      const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
      const refused = objection({ size: file.size, head });
      const bytes = refused ? null : await file.arrayBuffer(); // a file may change while it is sent, a copy not
      if (signal.aborted) return;
      if (refused) return this.#set({ objection: refused });
      const blob = new Blob([bytes], { type: file.type });
      this.#set({ picture: { blob, url: this.#urls.createObjectURL(blob) } });
    } catch {
      if (!signal.aborted) this.#set({ objection: UNREADABLE });
    }
  }

  /** The browser has decoded the picture at `url`, or could not (no size). */
  decoded(url, { width, height } = {}) {
    if (this.picture?.url !== url) return;
    const refused = width ? tooManyPixels(width, height) : UNREADABLE;
    if (!refused) return;
    this.clear();
    this.#set({ objection: refused });
  }

  /** Ask the model about the picture. */
  async ask() {
    const { signal } = this.#newTurn();
    const model = this.models.find(({ digest }) => digest === this.digest);
    this.#set({ asking: true });
    const body = new FormData();
    body.append("image", this.picture.blob, "picture");
    const path = `/v1/predictions?attention=true&model=${model.digest}`;
    // Both at once; the answer does not wait for its model's history.
    const origin = provenance(this.#api, model.digest, model.job, signal);
    origin.catch(() => {});
    try {
      const prediction = await this.#api.json("model", path, { method: "POST", body, signal });
      if (signal.aborted) return;
      const classes = ranked(prediction.probabilities);
      const answer = { prediction, classes, at: new Date(), origin: undefined };
      this.#set({ asking: false, answer, shown: classes[0].code });
      await this.#trace(origin, signal);
    } catch (error) {
      if (signal.aborted) return;
      this.#set({ asking: false, failure: failure(error) });
      if (this.failure.code === "no_model") await this.loadModels();
    }
  }

  /** Look up the model's history again, where that failed. */
  async trace() {
    const { model, job } = this.answer.prediction;
    this.#set({ answer: { ...this.answer, origin: undefined } });
    await this.#trace(provenance(this.#api, model, job, this.#turn.signal), this.#turn.signal);
  }

  /** Ask another model from now on; the picture stays. */
  useModel(digest) {
    this.#newTurn();
    this.#set({ digest });
  }

  /** Show the map of another class, or show it stronger or weaker. */
  look(change) {
    this.#set(change);
  }

  /** Forget the picture and all that was said about it. */
  clear() {
    this.#newTurn();
    if (this.picture) this.#urls.revokeObjectURL(this.picture.url);
    this.#set({ picture: null, objection: "" });
  }

  async #trace(asked, signal) {
    const origin = await asked.catch(() => null);
    if (!signal.aborted) this.#set({ answer: { ...this.answer, origin } });
  }

  async #nameJobs() {
    const jobs = await this.#api.json("aggregator", "/v1/jobs").catch(() => []);
    this.#set({ jobs: Object.fromEntries(jobs.map(({ id, spec }) => [id, spec.name])) });
  }

  /** Whatever was asked before is of no interest any more. */
  #newTurn() {
    this.#turn.abort();
    this.#turn = new AbortController();
    this.#set({ asking: false, answer: null, failure: null, shown: null });
    return this.#turn;
  }

  #set(change) {
    Object.assign(this, change);
    this.#changed();
  }
}
