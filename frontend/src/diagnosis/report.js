// The answer as one picture to keep: composed on a canvas in light colours at twice the screen's resolution.

import { percent } from "../format.js";
import { paintMap } from "./overlay.js";
import { lines } from "./paragraphs.js";

const WIDTH = 800;
const MARGIN = 40;
const INNER = WIDTH - 2 * MARGIN;
const SCALE = 2;
const PICTURE = { width: 350, height: 300, gap: 20 };
const INK = "#17222b";
const QUIET = "#52606b";
const LINE = "#d5dbe0";
const BARS = { malignant: "#b4431f", "pre-malignant": "#9a6a00", benign: "#0b6670" };
const FONT = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

/**
 * A PNG of the answer. `image` is the decoded picture; `grid` (or null) its map and `strength` how strongly it is drawn;
 * the rest is text: `title`, `date`, `verdict`, `caption`, `remarks`, `notice`, `facts` ([name, value]), and `classes`
 * as `ranked` has them with a `note` each. Throws `Error` where the browser makes no PNG.
 */
export async function reportPng(report) {
  const trial = document.createElement("canvas").getContext("2d");
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH * SCALE;
  canvas.height = Math.ceil(paint(trial, report)) * SCALE; // painted once only to learn how tall it is
  const context = canvas.getContext("2d");
  context.scale(SCALE, SCALE);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  paint(context, report);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("This browser could not make the PNG. Print the page instead.");
  return blob;
}

/** Paints from the top down and returns the height, CSS pixels. */
function paint(context, report) {
  let y = MARGIN;
  const text = (content, { size = 14, weight = 400, color = INK, x = MARGIN, width = INNER, after = 6 } = {}) => {
    context.font = `${weight} ${size}px ${FONT}`;
    context.fillStyle = color;
    context.textBaseline = "top";
    for (const line of lines(content, width, (part) => context.measureText(part).width)) {
      context.fillText(line, x, y);
      y += size * 1.4;
    }
    y += after;
  };
  text(report.title, { size: 22, weight: 700, after: 2 });
  text(report.date, { color: QUIET, after: 14 });
  y = pictures(context, report, y) + 8;
  text(report.caption, { size: 12, color: QUIET, after: 14 });
  text(report.verdict, { size: 17, weight: 650 });
  for (const remark of report.remarks) text(remark);
  y += 4;
  y = noticeBox(context, report.notice, y) + 18;
  for (const each of report.classes) y = bar(context, each, y);
  y += 10;
  rule(context, y);
  y += 14;
  for (const [name, value] of report.facts) {
    const top = y;
    text(name, { size: 12, color: QUIET, width: 130, after: 0 });
    y = top;
    text(value, { size: 12, x: MARGIN + 140, width: INNER - 140, after: 4 });
  }
  return y + MARGIN - 10;
}

/** The picture as it is and, beside it, under its map. */
function pictures(context, { image, grid, strength }, y) {
  const ratio = Math.min(PICTURE.width / image.naturalWidth, PICTURE.height / image.naturalHeight);
  const width = image.naturalWidth * ratio;
  const height = image.naturalHeight * ratio;
  context.imageSmoothingQuality = "high";
  context.drawImage(image, MARGIN, y, width, height);
  if (grid) {
    const x = MARGIN + PICTURE.width + PICTURE.gap;
    context.drawImage(image, x, y, width, height);
    context.globalAlpha = strength;
    context.drawImage(paintMap(document.createElement("canvas"), grid), x, y, width, height);
    context.globalAlpha = 1;
  }
  return y + height;
}

function bar(context, { name, kind, probability, note }, y) {
  context.textBaseline = "top";
  context.font = `600 14px ${FONT}`;
  context.fillStyle = INK;
  context.fillText(name, MARGIN, y);
  const after = MARGIN + context.measureText(name).width + 10;
  context.font = `400 12px ${FONT}`;
  context.fillStyle = QUIET;
  context.fillText([kind, note].filter(Boolean).join(" · "), after, y + 2);
  context.font = `600 14px ${FONT}`;
  context.fillStyle = INK;
  context.textAlign = "right";
  context.fillText(percent(probability), MARGIN + INNER, y);
  context.textAlign = "left";
  context.fillStyle = "#eceff1";
  context.fillRect(MARGIN, y + 20, INNER, 7);
  context.fillStyle = BARS[kind] ?? BARS.benign;
  context.fillRect(MARGIN, y + 20, INNER * probability, 7);
  return y + 38;
}

function noticeBox(context, notice, y) {
  context.fillStyle = "#fdeed3";
  context.fillRect(MARGIN, y, INNER, 34);
  context.fillStyle = "#8a5200";
  context.font = `650 14px ${FONT}`;
  context.fillText(notice, MARGIN + 12, y + 10);
  return y + 34;
}

function rule(context, y) {
  context.fillStyle = LINE;
  context.fillRect(MARGIN, y, INNER, 1);
}
