// Creating a job: a form, what it will cost, and what is wrong with it before and after it is sent.

import { architecture, bytes, count } from "../format.js";
import { html, nothing, render } from "../html.js";
import { ADAPTER_BYTES, estimate, MODEL_BYTES } from "../job/estimate.js";
import { fields } from "../job/form.js";
import { chosenArtifact, DEFAULTS, faults, fieldsOfNetwork, initialRequest, jobSpec, refusalOf } from "../job/spec.js";
import { api, page } from "../page.js";
import { sentence } from "../problem.js";
import { isOnline } from "../sites.js";

const REFRESH_MS = 10_000;

page({ what: "the form for new jobs", roles: ["admin"], start });

function start(view) {
  const state = {
    values: { ...DEFAULTS },
    faults: {},
    models: undefined,
    online: undefined,
    sizes: new Map(),
    busy: "",
    problem: "",
  };
  const touched = new Set();
  let timer;
  let over = false;

  const draw = () => !over && render(content(state, { changed, send }), view);

  function changed(event) {
    const { name, value } = event.target;
    if (!(name in state.values)) return;
    state.values[name] = value;
    touched.add(name);
    const model = name === "model" ? modelOf(state) : undefined;
    if (model) state.values = { ...state.values, ...fieldsOfNetwork(model.architecture) };
    if (["architecture", "timm"].includes(name) && state.values.weights === "model") state.values.model = "";
    delete state.faults[name];
    measure(state).then(draw);
    draw();
  }

  async function send(event) {
    event.preventDefault();
    if (state.busy) return;
    Object.assign(state, { faults: faults(state.values), problem: "" });
    if (Object.keys(state.faults).length) return refuse("The job was not created: see the fields marked below.");
    try {
      const digest = await initialWeights(state, draw);
      state.busy = "Creating the job…";
      draw();
      const job = await api.json("aggregator", "/v1/jobs", { json: jobSpec(state.values, digest) });
      location.assign(`/job?id=${job.id}`);
    } catch (error) {
      const refusal = refusalOf(error, sentence(error));
      state.faults = refusal.fields;
      refuse(refusal.top);
    }
  }

  function refuse(text) {
    Object.assign(state, { problem: text, busy: "" });
    draw();
    const wrong = [...view.querySelectorAll("[aria-invalid]")];
    for (const field of wrong) field.closest("details")?.setAttribute("open", "");
    (wrong[0] ?? view.querySelector("#refusal")).focus();
  }

  async function look() {
    try {
      const [nodes, members] = await Promise.all([
        api.json("aggregator", "/v1/nodes"),
        api.json("chain", "/v1/members?role=hospital"),
      ]);
      const enrolled = new Set(members.map((member) => member.address));
      state.online = nodes.filter((node) => isOnline(node) && enrolled.has(node.address)).length;
      if (!touched.has("quorum")) state.values.quorum = String(Math.max(1, Math.ceil(state.online / 2)));
    } catch {
      // Without them the form still works; the cost is then for one hospital.
    }
    draw();
    if (!over) timer = setTimeout(look, REFRESH_MS);
  }

  draw();
  look();
  api.json("model", "/v1/models").then(
    (models) => {
      state.models = models;
      draw();
    },
    () => {},
  );
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

const modelOf = ({ models, values }) => models?.find((model) => model.digest === values.model);

/** The digest of the initial weights, which are made first where they must be. Throws `Problem`. */
async function initialWeights(state, draw) {
  const asked = initialRequest(state.values);
  if (asked === null) return chosenArtifact(state.values);
  const name = architecture(asked.architecture);
  state.busy = {
    imagenet: `Preparing ImageNet weights for ${name}; where they must be downloaded first, this takes a minute or more…`,
    random: `Drawing random weights for ${name}; this takes some seconds…`,
    file: `Preparing weights for ${name}; this takes some seconds…`,
  }[asked.weights];
  draw();
  return (await api.json("model", "/v1/initial-models", { json: asked })).digest;
}

/** Learn the exact size of the file that was chosen, if one was, and of its trunk where it is an adapter. */
async function measure({ values, sizes }) {
  if (initialRequest(values)) return;
  const digest = chosenArtifact(values);
  if (!/^[0-9a-f]{64}$/.test(digest) || sizes.has(digest)) return;
  const info = (of) => api.json("model", `/v1/artifacts/${of}/info`);
  try {
    const found = await info(digest);
    sizes.set(digest, { modelBytes: found.size, trunkBytes: found.trunk ? (await info(found.trunk)).size : 0 });
  } catch {
    // The estimate stays with the architecture's usual size.
  }
}

function content(state, { changed, send }) {
  return html`<form class="new-job" novalidate @input=${changed} @submit=${send}>
    <div class="panel">
      <div id="refusal" tabindex="-1" role="alert">${state.problem ? html`<p class="problem">${state.problem}</p>` : nothing}</div>
      ${fields(state)}
      <div class="actions">
        <button class="primary" ?disabled=${state.busy !== ""}>Create the job</button>
        <a class="button" href="/jobs">Cancel</a>
        <span role="status">${state.busy ? html`<span class="busy">${state.busy}</span>` : nothing}</span>
      </div>
    </div>
    ${cost(state)}
  </form>`;
}

/** What is known of the bytes of a network from the list; nothing of one of timm. */
function usualBytes({ architecture, adapter }) {
  const whole = MODEL_BYTES[architecture];
  if (whole === undefined) return { modelBytes: undefined, trunkBytes: 0 };
  return adapter === "none"
    ? { modelBytes: whole, trunkBytes: 0 }
    : { modelBytes: ADAPTER_BYTES[architecture][adapter], trunkBytes: whole };
}

function cost({ values, online, sizes }) {
  const rounds = Math.max(1, Math.trunc(Number(values.rounds)) || 1);
  const hospitals = Math.max(online ?? 0, Math.trunc(Number(values.quorum)) || 1, 1);
  const exact = initialRequest(values) ? undefined : sizes.get(chosenArtifact(values));
  const { modelBytes, trunkBytes } = exact ?? usualBytes(values);
  const { recording, encoding } = values;
  const sum = estimate({ modelBytes: modelBytes ?? 0, trunkBytes, hospitals, rounds, recording, encoding });
  const size = (number) => (modelBytes === undefined ? "unknown" : bytes(number));
  return html`<section class="panel cost" aria-labelledby="cost-title">
    <h2 id="cost-title">What it will cost</h2>
    <p class="quiet">
      ${hospitals === 1 ? "With one hospital" : `With ${count(hospitals)} hospitals`} in ${rounds === 1 ? "one round" : `${count(rounds)} rounds`}${values.target ? ", or fewer once the target is reached" : nothing}.
    </p>
    <dl>
      <div><dt>${trunkBytes ? "What is trained" : "Model"}</dt><dd>${exact || modelBytes === undefined ? size(modelBytes) : `about ${bytes(modelBytes)}`}</dd></div>
      ${trunkBytes ? html`<div><dt>Weights under it, once</dt><dd>${exact ? bytes(trunkBytes) : `about ${bytes(trunkBytes)}`}</dd></div>` : nothing}
      <div><dt>Downloads</dt><dd>${count(sum.downloads)} <span class="quiet">${size(sum.bytesDown)}</span></dd></div>
      <div><dt>Uploads</dt><dd>${count(sum.uploads)} <span class="quiet">${size(sum.bytesUp)}</span></dd></div>
      <div><dt>In all</dt><dd id="cost-bytes"><strong>${size(sum.bytes)}</strong></dd></div>
      <div><dt>For each hospital</dt><dd>${size(sum.bytesEach)}</dd></div>
      <div><dt>Ledger transactions</dt><dd>${values.recording === "merkle" ? nothing : "at most "}<span id="cost-transactions">${count(sum.transactions)}</span></dd></div>
    </dl>
    <p class="quiet">
      Every hospital downloads the initial model, which is evaluated first, and the new one of each round; it uploads one
      update a round. A round opens and closes on the ledger, with one transaction for
      ${values.recording === "merkle" ? "all its updates" : "each update, or for several that come together"}; publishing is one more.
    </p>
  </section>`;
}
