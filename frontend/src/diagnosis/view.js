// The diagnosis page's HTML: the picture and what to do with it, the answer, and where the model comes from.

import { inWords as numberInWords, within } from "../classes.js";
import { architecture, brief, count, moment, percent, short } from "../format.js";
import { html, nothing } from "../html.js";
import { doubts, NOTICE, oddity, recallNote, recallSentence, warning } from "./answer.js";
import { inWords } from "./attention.js";
import { ACCEPT } from "./picture.js";

/** The whole page. `state` is a `Consultation`, `on` what its controls do, `admin` whether the reader may start jobs. */
export function consultationView(state, on, admin) {
  if (state.models === undefined) return state.modelsProblem ? modelsProblem(state.modelsProblem, on) : loading();
  if (state.models.length === 0) return noModel(on, admin);
  const { answer } = state;
  return html`<div class="diagnosis">
      ${picturePanel(state, on)}
      <section class="panel answer" aria-labelledby="answer-title">
        <h2 id="answer-title" tabindex="-1">What the model says</h2>
        ${answerPart(state, on)}
      </section>
    </div>
    ${answer ? originPanel(state, on) : nothing}`;
}

/** The map shown, `{code, grid}`, if the model gave maps. */
export const shownMap = ({ answer, shown }) => answer?.prediction.attention?.find(({ code }) => code === shown);

/** That map in a sentence. */
export const mapInWords = (state) => {
  const { name } = state.answer.classes.find(({ code }) => code === state.shown);
  return inWords(shownMap(state).grid, within(name));
};

/** "Melanoma is the most probable class: 73.1 %." */
export const verdict = ({ name, probability }) => `${name} is the most probable class: ${percent(probability)}.`;

/** What stands about the answer in sentences: what the model warns of, how good it has proved for its first class, and doubts. */
export const remarks = ({ prediction, classes, origin }) => [
  ...[oddity(prediction), warning(prediction, classes)].filter(Boolean),
  ...(origin ? [recallSentence(classes[0], origin.recognised?.[classes[0].index])] : []),
  ...doubts(classes),
];

/** Rows `[name, text]` about where a model comes from. */
export function facts({ prediction, origin }) {
  const { version, job, hospitals } = origin ?? {};
  const rows = [["Model", prediction.model]];
  if (version)
    rows.push([
      "Network",
      `${architecture(version.architecture)}, ${version.image_size} × ${version.image_size} pixels`,
    ]);
  rows.push(["Job", job?.spec.name ?? prediction.job]);
  if (version) {
    rows.push(["Trained", `${count(version.rounds)} ${version.rounds === 1 ? "round" : "rounds"}`]);
    rows.push(["Hospitals", hospitals.map(({ site }) => site).join(", ")]);
    rows.push(["Published", moment(version.published_at)]);
  }
  return rows;
}

function loading() {
  return html`<section class="panel"><p class="busy" role="status">Looking for published models…</p></section>`;
}

function modelsProblem(problem, on) {
  return html`<section class="panel">
    <p class="problem" role="alert">${problem}</p>
    <button @click=${on.again}>Try again</button>
  </section>`;
}

function noModel(on, admin) {
  return html`<section class="panel empty">
    <h2>No model is published yet</h2>
    <p>Once a training job has finished, its model answers here.</p>
    <div class="actions centred">
      <a class="button primary" href=${admin ? "/new-job" : "/jobs"}>${admin ? "Start a job" : "See the jobs"}</a>
      <button @click=${on.again}>Look again</button>
    </div>
  </section>`;
}

function picturePanel(state, on) {
  const { picture, objection, asking, answer } = state;
  // The map and its controls come last, in room that is kept for them: nothing may move when the answer arrives.
  return html`<section class="panel picture" aria-labelledby="picture-title">
    <h2 id="picture-title">Picture</h2>
    <input
      id="file"
      class="file hidden-visually"
      type="file"
      accept=${ACCEPT}
      aria-describedby=${picture ? nothing : "file-note"}
      @change=${on.file}
    />
    ${state.models.length > 1 ? modelChoice(state, on) : nothing} ${picture ? frame(state, on) : dropZone()}
    ${objection ? html`<p class="problem" role="alert">${objection}</p>` : nothing}
    ${
      picture
        ? html`<div class="actions no-print">
            <button class=${answer ? "" : "primary"} ?disabled=${asking} @click=${on.ask}>
              ${answer ? "Ask again" : "Ask the model"}
            </button>
            <label class="button" for="file">Choose another</label>
            <button @click=${on.clear}>Clear</button>
          </div>`
        : nothing
    }
    ${shownMap(state) || asking ? html`<div class="map-part">${shownMap(state) ? mapPart(state, on) : nothing}</div>` : nothing}
  </section>`;
}

function dropZone() {
  return html`<label class="drop" for="file">
      <span class="drop-what">Choose a picture, or drop it here</span>
      <span>A phone offers its camera.</span>
    </label>
    <p id="file-note" class="quiet small">
      JPEG or PNG, 10 MB at most; no DICOM. The picture is sent to the model and kept nowhere.
    </p>`;
}

function frame(state, on) {
  return html`<div class="frame">
    <img src=${state.picture.url} alt="The picture you chose" @load=${on.decoded} @error=${on.broken} />
    ${shownMap(state) ? html`<canvas class="map" role="img" aria-label=${mapInWords(state)}></canvas>` : nothing}
  </div>`;
}

function mapPart(state, on) {
  const { answer, shown, strength } = state;
  return html`<h3>Where the network looked</h3>
    <div class="fields no-print">
      <label>
        For
        <select @change=${on.show}>
          ${answer.classes.map(({ code, name }) => html`<option value=${code} ?selected=${code === shown}>${name}</option>`)}
        </select>
      </label>
      <label>
        Strength
        <input type="range" min="0" max="100" .value=${String(Math.round(strength * 100))} @input=${on.strength} />
      </label>
    </div>
    <p class="scale quiet small" aria-hidden="true"><span>little</span><span class="ramp"></span><span>much</span></p>
    <p class="words small">${mapInWords(state)}</p>`;
}

function modelChoice(state, on) {
  return html`<label class="model-choice no-print">
    Model
    <select @change=${on.model}>
      ${state.models.map(
        (model, at) =>
          html`<option value=${model.digest} ?selected=${model.digest === state.digest}>
            ${state.jobs[model.job] ?? architecture(model.architecture)}, ${moment(model.published_at)}, ${brief(model.digest)}${at === 0 ? " (newest)" : ""}
          </option>`,
      )}
    </select>
  </label>`;
}

function answerPart(state, on) {
  const { answer, asking, failure: failed, picture } = state;
  if (asking) return waiting();
  if (failed) {
    return html`<p class="problem" role="alert">${failed.message}</p>
      ${failed.again ? html`<button @click=${on.ask}>Try again</button>` : nothing} ${noDevice()}`;
  }
  if (!answer) {
    return html`<p class="quiet">
        ${picture ? "Ask the model: its answer appears here." : "Choose a picture first; the model's answer appears here."}
      </p>
      ${noDevice()}`;
  }
  const [first] = answer.classes;
  const odd = oddity(answer.prediction);
  const warned = warning(answer.prediction, answer.classes);
  return html`${odd ? html`<p class="problem" id="unusual" role="alert">${odd}</p>` : nothing}
    <p class="verdict"><strong>${first.name}</strong> is the most probable class: <strong>${percent(first.probability)}</strong>.</p>
    ${warned ? html`<p id="critical" class=${answer.prediction.critical.above ? "problem" : ""}>${warned}</p>` : nothing}
    <div class="remarks">
      ${
        answer.origin === undefined
          ? html`<p class="busy quiet">Looking up how well this model recognises that class…</p>`
          : remarks(answer)
              .filter((remark) => remark !== odd && remark !== warned)
              .map((remark) => html`<p>${remark}</p>`)
      }
    </div>
    ${noDevice()}
    <ol class="classes">
      ${answer.classes.map((each) => classRow(each, answer.origin?.recognised?.[each.index]))}
    </ol>
    <p class="quiet small">
      Asked on ${moment(answer.at)}. Probabilities of a network say how it weighs ${numberInWords(answer.classes.length)} classes, not how often a disease occurs.
    </p>
    <div class="actions no-print">
      <button @click=${on.download} ?disabled=${answer.origin === undefined}>Download as PNG</button>
      <button @click=${on.print} ?disabled=${answer.origin === undefined}>Print or save as PDF</button>
      <output class="saved small"></output>
    </div>`;
}

function classRow({ code, name, kind, what, probability }, measured) {
  return html`<li class="class" data-code=${code} data-probability=${probability}>
    <div class="class-head">
      <span class="class-kind"><span class="class-name">${name}</span>
      ${kind ? html`<span class=${`badge ${{ malignant: "bad", "pre-malignant": "warn", benign: "" }[kind]}`}>${kind}</span>` : nothing}</span>
      <span class="class-share">${percent(probability)}</span>
    </div>
    <svg class=${`bar-of-share ${kind}`} viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
      <rect class="whole-bar" width="100" height="8"></rect>
      <rect class="part-bar" width=${(probability * 100).toFixed(2)} height="8"></rect>
    </svg>
    <p class="quiet small">${what}${measured?.of ? html` <span class="nowrap">(${recallNote(measured)})</span>` : nothing}</p>
  </li>`;
}

const noDevice = () => html`<p class="no-device"><strong>${NOTICE}</strong></p>`;

function waiting() {
  return html`<p class="busy" role="status">Asking the model…</p>
    <div class="skeleton" aria-hidden="true">${Array.from({ length: 7 }, () => html`<span></span>`)}</div>`;
}

function originPanel({ answer }, on) {
  const { prediction, origin } = answer;
  return html`<section class="panel origin" aria-labelledby="origin-title">
    <h2 id="origin-title">Where this model comes from</h2>
    ${
      origin === undefined
        ? html`<p class="busy" role="status">Looking it up…</p>`
        : html`${
            origin.problem
              ? html`<p class="problem" role="alert">Not everything about the model could be had. ${origin.problem}</p>
                    <button class="no-print" @click=${on.trace}>Try again</button>`
              : nothing
          }
            <dl class="facts">
              ${facts(answer).map(([name, text]) => html`<div class=${name === "Model" ? "wide" : ""}><dt>${name}</dt><dd>${fact(name, text, answer)}</dd></div>`)}
            </dl>
            <p class="no-print"><a href=${`/lineage?job=${prediction.job}`}>Follow it from its first weights to this model</a></p>`
    }
  </section>`;
}

function fact(name, text, { prediction, origin }) {
  if (name === "Model") return html`<code class="digest">${text}</code>`;
  if (name === "Job") return html`<a href=${`/job?id=${prediction.job}`}>${text}</a>`;
  if (name === "Hospitals") {
    return html`<ul class="contributors">
      ${origin.hospitals.map(({ address, site }) => html`<li>${site} ${site === short(address) ? nothing : html`<code class="quiet" title=${address}>${short(address)}</code>`}</li>`)}
    </ul>`;
  }
  return text;
}
