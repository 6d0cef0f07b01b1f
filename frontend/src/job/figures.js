// A job's charts, each with a sentence and a table that say the same, and the confusion matrix.

import { classesOf } from "../classes.js";
import { count, percent } from "../format.js";
import { html, nothing } from "../html.js";
import { findings } from "./calibration.js";
import { evaluatedRound, rows, worst } from "./confusion.js";
import { inUnit } from "./series.js";
import { vars } from "./vars.js";

/** The section of all charts; `drawCharts` fills their canvases. */
export function figures(charts) {
  return html`<section class="stack" aria-labelledby="charts-title">
    <h2 id="charts-title">Over the rounds</h2>
    <div class="charts">${charts.map(figure)}</div>
  </section>`;
}

/** Draw each chart on its canvas below `view`. */
export function drawCharts(view, drawer, charts) {
  for (const each of charts) drawer.draw(view.querySelector(`#chart-${each.id}`), each);
}

/** The section of a calibrated round, whose `chart` is `reliability`'s; nothing before there is one. */
export function calibration(view, round, chart) {
  if (!round) return nothing;
  return html`<section class="stack" id="calibration" aria-labelledby="calibration-title">
    <h2 id="calibration-title">How far its answers can be believed: ${nameOf(round.round)}</h2>
    <div class="charts">
      ${figure(chart)}
      <div class="panel chart">
        <h3>What was found</h3>
        ${findings(view, round).map((sentence) => html`<p>${sentence}</p>`)}
      </div>
    </div>
  </section>`;
}

function figure({ id, title, what, sentence, unit, labels, columns, axis = "Round" }) {
  return html`<figure class="panel chart" aria-labelledby="figure-${id}">
    <figcaption>
      <h3 id="figure-${id}">${title}</h3>
      <p class="quiet">${what}</p>
    </figcaption>
    <div class="canvas"><canvas id="chart-${id}" role="img" aria-label=${`${title}. ${sentence}`}></canvas></div>
    <p class="sentence">${sentence}</p>
    <details>
      <summary>Show as table</summary>
      <div class="table" tabindex="0" role="region" aria-label=${`${title} as a table`}>
        <table>
          <thead>
            <tr>
              <th scope="col">${axis}</th>
              ${columns.map((column) => html`<th scope="col" class="number">${column.label}</th>`)}
            </tr>
          </thead>
          <tbody>
            ${labels.map(
              (label, at) => html`<tr>
                <th scope="row">${label}</th>
                ${columns.map((column) => html`<td class="number">${inUnit(unit, column.values[at])}</td>`)}
              </tr>`,
            )}
          </tbody>
        </table>
      </div>
    </details>
  </figure>`;
}

/** The confusion matrix of the newest evaluated round up to `number`. */
export function confusion(view, number) {
  const round = evaluatedRound(view, number);
  return html`<section class="panel confusion" aria-labelledby="confusion-title">
    <h2 id="confusion-title">Confusion matrix${round ? html`: ${nameOf(round.round)}` : nothing}</h2>
    ${round ? matrix(round, classesOf(view.spec)) : html`<p class="quiet">It appears as soon as a hospital has evaluated a model.</p>`}
  </section>`;
}

function matrix(round, classes) {
  const images = round.confusion.flat().reduce((sum, value) => sum + value, 0);
  const remark = worst(round.confusion, classes);
  return html`<p class="quiet">
      ${count(images)} held-out images of all hospitals together. Each row is what the images are, each column what the
      network said; the stronger a cell's colour, the larger its share of the row.
    </p>
    <div class="table" tabindex="0" role="region" aria-label="Confusion matrix">
      <table class="matrix">
        <thead>
          <tr>
            <th scope="col">Truth</th>
            ${classes.map(
              ({ code, name }) => html`<th scope="col" class="number" title=${name}>
                <span aria-hidden="true">${code}</span><span class="hidden-visually">taken for ${name}</span>
              </th>`,
            )}
            <th scope="col" class="number">Recall</th>
          </tr>
        </thead>
        <tbody>
          ${rows(round.confusion, classes).map(
            (row, truth) => html`<tr>
              <th scope="row"><span class="code" aria-hidden="true">${row.code}</span> ${row.name}</th>
              ${row.cells.map(
                (cell, guess) => html`<td
                  class="cell number ${truth === guess ? "right" : ""}"
                  ${vars({ share: cell.share.toFixed(3) })}
                >
                  ${count(cell.count)}
                </td>`,
              )}
              <td class="number recall">${row.recall === null ? "no images" : percent(row.recall, 0)}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${remark ? html`<p>${remark}</p>` : nothing}`;
}

const nameOf = (round) => (round === 0 ? "initial model" : `round ${round}`);
