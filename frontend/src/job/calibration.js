// How far a model's shares can be believed, as a round's calibration found it: a diagram, and sentences. Pure.

import { criticalOf, heldOutOf, within } from "../classes.js";
import { count, decimal, percent } from "../format.js";

/** The newest round up to `number` that was calibrated; null where none was. */
export const calibratedRound = (view, number) =>
  view.rounds.findLast((round) => round.round <= number && round.calibrated) ?? null;

/** The reliability diagram of a calibrated round, a chart as in series.js. */
export function reliability(view, round) {
  const { before, after } = round.calibrated;
  const bins = before.images.length;
  const labels = before.images.map((_, at) => `${edge(at, bins)}–${edge(at + 1, bins)} %`);
  const line = (label, values, dashed = false) => ({ label, values, dashed });
  return {
    id: "reliability",
    title: "Said and true",
    what: `Held-out ${heldOutOf(view.spec)} by the share that the most probable class was given, and how often that class is right. An honest network lies on the dashed line.`,
    kind: "line",
    unit: "share",
    axis: "Share that was given",
    labels,
    series: [
      line(
        "As it would be right",
        labels.map((_, at) => (at + 0.5) / bins),
        true,
      ),
      line("As the network is", truths(before)),
      line("With its temperature", truths(after)),
    ],
    columns: [line("Right, as the network is", truths(before)), line("Right, with its temperature", truths(after))],
    sentence: errors(round.calibrated.use),
  };
}

/** What a calibration found beside the temperature, in sentences. */
export function findings(view, { calibrated: { use } }) {
  const found = [
    `${count(use.images)} held-out pictures give a temperature of ${decimal(use.temperature)}: ${temperature(use.temperature)}`,
  ];
  if (use.critical)
    found.push(criticalSentence(within(criticalOf(view.spec)?.name ?? use.critical.code), use.critical));
  if (use.unusual)
    found.push(
      `A picture is told to be unusual where the network finds it odder than all but a few: ${percent(use.unusual.share)} of held-out pictures were.`,
    );
  return found;
}

/** What a threshold finds, in a sentence; `name` is the class's. */
export function criticalSentence(name, { sensitivity, specificity, positives, negatives }) {
  const spared =
    specificity === null ? "" : `, and warns of ${percent(1 - specificity)} of ${count(negatives)} that show none`;
  return `The threshold for ${name} finds ${percent(sensitivity)} of ${count(positives)} held-out pictures of it${spared}.`;
}

const errors = ({ error_before, error_after }) =>
  `Shares were off by ${percent(error_before)} on average (expected calibration error), and by ${percent(error_after)} with the temperature, each half of the pictures judged by what the other half gave.`;

const temperature = (value) =>
  value > 1.02
    ? "the network was too sure of itself, and its shares are drawn together."
    : value < 0.98
      ? "the network was too hesitant, and its shares are drawn apart."
      : "its shares stay nearly what they are.";

const truths = ({ images, correct }) => images.map((all, at) => (all ? correct[at] / all : null));
const edge = (at, bins) => Math.round((100 * at) / bins);
