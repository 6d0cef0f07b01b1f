// Diagnosis: a picture in, seven probabilities out, with where the network looked and where the model comes from.

import { NOTICE, recallNote } from "../diagnosis/answer.js";
import { Consultation } from "../diagnosis/consultation.js";
import { paintMap } from "../diagnosis/overlay.js";
import { reportPng } from "../diagnosis/report.js";
import { consultationView, facts, mapInWords, remarks, shownMap, verdict } from "../diagnosis/view.js";
import { download } from "../download.js";
import { moment } from "../format.js";
import { html, render } from "../html.js";
import { notice } from "../notices.js";
import { api, page, session } from "../page.js";
import { sentence } from "../problem.js";

const ROLES = ["clinician", "admin", "auditor", "hospital"]; // those that may ask, as the model service has it

page({ what: "the diagnosis page", roles: ROLES, start });

function start(view) {
  let ended = false;
  let answered = null;
  const state = new Consultation(api, update);
  const { address } = session.current;
  notice("role", null);

  function update() {
    if (ended) return;
    render(consultationView(state, on, session.holds("admin")), view);
    const canvas = view.querySelector("canvas.map");
    if (canvas) drawMap(canvas, shownMap(state), state.strength);
    if (state.answer && state.answer.prediction !== answered) view.querySelector("#answer-title").focus();
    answered = state.answer?.prediction ?? null;
  }

  const on = {
    again: () => state.loadModels(),
    ask: () => state.ask(),
    clear: () => {
      state.clear();
      view.querySelector(".file")?.focus();
    },
    file: (event) => {
      const [file] = event.target.files;
      if (file) state.choose(file);
      event.target.value = ""; // the same file may be chosen again, and the form keeps no name
    },
    decoded: ({ target: { src, style, naturalWidth: width, naturalHeight: height } }) => {
      style.setProperty("--shape", width / height);
      state.decoded(src, { width, height });
    },
    broken: ({ target }) => state.decoded(target.src),
    model: ({ target }) => state.useModel(target.value),
    show: ({ target }) => state.look({ shown: target.value }),
    strength: ({ target }) => state.look({ strength: target.valueAsNumber / 100 }),
    trace: () => state.trace(),
    print: () => globalThis.print(),
    download: () => saveReport(view, state),
  };

  const leave = new AbortController();
  const listen = (target, name, act) => target.addEventListener(name, act, { signal: leave.signal });
  // A picture may be dropped anywhere: a browser left to itself would go to the file and away from the page.
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    listen(document, name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      view.classList.toggle("dropping", name === "dragenter" || name === "dragover");
      const [file] = name === "drop" ? event.dataTransfer.files : [];
      if (file && state.models?.length) state.choose(file);
    });
  }
  listen(globalThis, "pagehide", () => state.clear()); // nor does the browser's memory of pages keep it

  update();
  state.loadModels();
  return () => {
    leave.abort();
    state.clear();
    ended = true;
    if (session.current?.address === address) {
      notice("role", html`<p>Your role was taken back: this account may not ask the model any more.</p>`);
    }
  };
}

function drawMap(canvas, { grid }, strength) {
  if (canvas.grid !== grid) paintMap(canvas, grid);
  canvas.grid = grid;
  canvas.style.opacity = strength;
}

async function saveReport(view, state) {
  const said = view.querySelector(".saved");
  const { answer } = state;
  const map = shownMap(state);
  try {
    const blob = await reportPng({
      image: view.querySelector(".frame img"),
      grid: map?.grid ?? null,
      strength: state.strength,
      title: "Concilia: what a model says about a picture",
      date: `Asked on ${moment(answer.at)}`,
      caption: map ? `On the right under its map. ${mapInWords(state)}` : "",
      verdict: verdict(answer.classes[0]),
      remarks: remarks(answer),
      notice: NOTICE,
      classes: answer.classes.map((each) => ({ ...each, note: recallNote(answer.origin?.recognised?.[each.index]) })),
      facts: facts(answer),
    });
    download(blob, `concilia-${answer.at.toISOString().slice(0, 16).replace(/[:T]/g, "-")}.png`, "image/png");
    said.textContent = "Saved.";
  } catch (error) {
    said.textContent = sentence(error);
  }
}
