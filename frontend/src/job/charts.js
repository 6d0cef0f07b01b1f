// Drawing with Chart.js: only the parts that are used, colours from the page's tokens, in place as rounds close.

import {
  BarController,
  BarElement,
  CategoryScale,
  Chart,
  Legend,
  LinearScale,
  LineController,
  LineElement,
  PointElement,
  Tooltip,
} from "chart.js";
import { inUnit } from "./series.js";

Chart.register(
  BarController,
  BarElement,
  CategoryScale,
  Legend,
  LinearScale,
  LineController,
  LineElement,
  PointElement,
  Tooltip,
);

const POINTS = ["circle", "rect", "triangle", "rectRot", "star", "crossRot"]; // colour is never the only difference
const DARK = matchMedia("(prefers-color-scheme: dark)");
const CALM = matchMedia("(prefers-reduced-motion: reduce)");

/** The charts of a page. */
export class Charts {
  #drawn = new Map();
  #recolour = () => {
    for (const { chart, description } of this.#drawn.values()) {
      dress(chart, description);
      chart.update("none");
    }
  };

  constructor() {
    DARK.addEventListener("change", this.#recolour);
  }

  /** Draw a chart (see series.js) on a canvas, or bring the one that is there up to date. */
  draw(canvas, description) {
    const drawn = this.#drawn.get(description.id);
    // A figure that went and came back has another canvas.
    if (drawn && drawn.chart.canvas !== canvas) drawn.chart.destroy();
    const known = drawn?.chart.canvas === canvas ? drawn : undefined;
    const shown = JSON.stringify([description.labels, description.series]);
    if (known?.shown === shown) return;
    const chart = known?.chart ?? new Chart(canvas, { type: description.kind, data: { labels: [], datasets: [] } });
    this.#drawn.set(description.id, { chart, description, shown });
    dress(chart, description);
    chart.update(CALM.matches || !known ? "none" : undefined);
  }

  /** Take all charts away. */
  end() {
    DARK.removeEventListener("change", this.#recolour);
    for (const { chart } of this.#drawn.values()) chart.destroy();
    this.#drawn.clear();
  }
}

function dress(chart, { kind, unit, labels, series, axis }) {
  const style = getComputedStyle(document.documentElement);
  const token = (name) => style.getPropertyValue(`--${name}`).trim();
  chart.data.labels = labels;
  series.forEach((line, index) => {
    const colour = line.dashed ? token("quiet") : token(`series-${(index % 6) + 1}`);
    const dataset = chart.data.datasets[index] ?? {};
    Object.assign(dataset, {
      label: line.label,
      data: line.values,
      borderColor: colour,
      backgroundColor: colour,
      borderWidth: kind === "line" ? 2 : 0,
      borderDash: line.dashed ? [6, 5] : [],
      pointStyle: POINTS[index % POINTS.length],
      pointRadius: line.dashed ? 0 : 4,
      spanGaps: true,
      maxBarThickness: 36,
    });
    chart.data.datasets[index] = dataset;
  });
  chart.data.datasets.length = series.length;
  chart.options = options({ unit, series, axis, token });
}

function options({ unit, series, axis, token }) {
  const text = { color: token("quiet"), font: { family: token("font"), size: 12 } };
  const grid = { color: token("line"), drawTicks: false };
  return {
    responsive: true,
    maintainAspectRatio: false,
    animation: CALM.matches ? false : { duration: 300 },
    interaction: { mode: "index", intersect: false },
    scales: {
      x: {
        title: { display: true, text: axis ?? "Round", ...text },
        ticks: { ...text, maxRotation: 0 },
        grid: { display: false },
      },
      y: {
        beginAtZero: true,
        ...(unit === "share" ? { max: 1 } : {}),
        ticks: { ...text, padding: 6, maxTicksLimit: 6, callback: (value) => tick(unit, value) },
        grid,
        border: { display: false },
      },
    },
    plugins: {
      legend: {
        display: series.length > 1,
        position: "bottom",
        labels: { ...text, color: token("ink"), usePointStyle: true, boxHeight: 7 },
      },
      tooltip: {
        backgroundColor: token("ink"),
        titleColor: token("panel"),
        bodyColor: token("panel"),
        callbacks: {
          title: ([item]) => titleOf(item.label, axis),
          label: (item) => `${item.dataset.label}: ${inUnit(unit, item.parsed.y)}`,
        },
      },
    },
  };
}

function titleOf(label, axis) {
  if (axis) return `${axis}: ${label}`;
  return label === "start" ? "Initial model" : `Round ${label}`;
}

function tick(unit, value) {
  if (value === 0) return unit === "share" ? "0 %" : "0";
  return unit === "share" ? `${Math.round(value * 100)} %` : unit === "plain" ? value : inUnit(unit, value);
}
