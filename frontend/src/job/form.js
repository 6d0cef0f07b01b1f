// A new job's form as HTML: each field with a sentence that says what it does, and one that says what is wrong with it.

import { architecture, brief, count, moment } from "../format.js";
import { html, nothing } from "../html.js";
import { MODEL_BYTES, quorumSentence } from "./estimate.js";
import { calibrates, canCalibrate, isPrivate, strategyFields } from "./spec.js";

/** The form's fields for `{values, faults, models, online}`. */
export function fields({ values, faults, models, online }) {
  const input = (name, attributes) => inputOf(name, values, faults, attributes);
  const select = (name, options) => selectOf(name, values, faults, options);
  const field = (name, label, help, control) => fieldOf(name, label, help, control, faults);
  const quorum = quorumSentence(Number(values.quorum) || 0, online ?? 0);

  return html`<fieldset>
      <legend>What is trained</legend>
      <div class="fields">
        ${field("name", "Name", "What people will call it; it can be anything.", input("name", { maxlength: 100, autocomplete: "off" }))}
        ${field("architecture", "Network", "Larger networks see more and cost more time and bytes.", select("architecture", networks()))}
        ${
          values.architecture === "timm"
            ? field(
                "timm",
                "timm's name of it",
                "As in resnet10t. Every hospital and the model service must have timm installed; one that has not refuses the job.",
                input("timm", { maxlength: 60, spellcheck: "false", autocomplete: "off" }),
              )
            : nothing
        }
        ${field("weights", "Initial weights", weightsHelp(values.weights), select("weights", weightKinds(models)))}
        ${
          values.weights === "model"
            ? field(
                "model",
                "Published model",
                "Training goes on from it; its network is used.",
                select("model", published(models)),
              )
            : nothing
        }
        ${
          values.weights === "artifact"
            ? field(
                "artifact",
                "Artifact's digest",
                "SHA-256 of a stored file that fits the network, 64 characters.",
                input("artifact", { maxlength: 64, spellcheck: "false", autocomplete: "off" }),
              )
            : nothing
        }
        ${field(
          "adapter",
          "What moves",
          "Everything, or a small part over weights that stay as they are, which each hospital fetches once: a round then moves some hundredths of the bytes, and learns a little less.",
          select("adapter", [
            ["none", "everything"],
            ["norms", "last layer and normalisation"],
            ["lora:4", "these, and every layer in rank 4"],
            ["lora:8", "these, and every layer in rank 8"],
            ["lora:16", "these, and every layer in rank 16"],
          ]),
        )}
      </div>
    </fieldset>
    <fieldset>
      <legend>How the rounds go</legend>
      <div class="fields">
        ${field("rounds", "Rounds", "How often hospitals train and their updates are averaged.", input("rounds", { inputmode: "numeric" }))}
        ${field("quorum", "Quorum", html`So many confirmed updates are enough when the deadline comes. ${online === undefined ? nothing : html`<span class=${quorum.short ? "wrong" : ""}>${quorum.text}</span>`}`, input("quorum", { inputmode: "numeric" }))}
        ${field("deadline", "Deadline in minutes", "From a round's opening; whoever is later is left out of that round.", input("deadline", { inputmode: "decimal" }))}
        ${field("target", "Target in %", "The job ends early once balanced accuracy reaches it. Empty: all rounds are run.", input("target", { inputmode: "decimal" }))}
        ${field("strategy", "Strategy", STRATEGY_HELP[strategyGroup(values.strategy)], select("strategy", STRATEGIES))}
        ${
          strategyFields(values).mixing
            ? field(
                "mixing",
                "Before it, mix",
                "Means of some updates in place of each: honest ones come closer together, and who stands out stands out more.",
                select("mixing", [
                  ["none", "nothing"],
                  ["nearest_neighbours", "each with its nearest"],
                  ["bucketing", "in buckets at random"],
                ]),
              )
            : nothing
        }
        ${strategyFields(values).hostile ? field("hostile", "Hostile updates, at most, in %", "So large a part of a round's updates may be wrong or hostile. More than that, and nothing is promised.", input("hostile", { inputmode: "decimal" })) : nothing}
        ${strategyFields(values).q ? field("q", "Fairness: q", "The larger, the more hospitals count on whose pictures the model does badly; 0 counts all alike.", input("q", { inputmode: "decimal" })) : nothing}
        ${strategyFields(values).radius ? field("radius", "Length of an update, at most", "Longer ones are cut to it before they are added up. The shorter, the less noise there has to be, and the slower it learns.", input("radius", { inputmode: "decimal" })) : nothing}
        ${strategyFields(values).central ? field("central", "Noise on the sum", "In multiples of that length. More noise, a smaller ε; more hospitals, less of it in the mean.", input("central", { inputmode: "decimal" })) : nothing}
        ${field(
          "recording",
          "How updates are recorded",
          "Each by itself: the ledger checks and shows every one. Under one Merkle root: a round's updates wait for one transaction that stands for them all, which costs hundreds of hospitals hardly more than one; each can prove that its own is in it.",
          select("recording", [
            ["each", "each by itself"],
            ["merkle", "under one Merkle root"],
          ]),
        )}
        ${field(
          "encoding",
          "How updates are sent",
          "Fewer bytes on a slow line. All but the first send what training changed, rounded; what rounding to eight bits or leaving the rest out has left over is added to the next round's update. A hospital whose software cannot do it sends all.",
          select("encoding", [
            ["none", "as they are"],
            ["float16", "half precision: half the bytes"],
            ["int8+zstd", "eight bits, compressed: about a quarter"],
            ["topk:0.01+zstd", "the largest hundredth: some hundredths, learns slower"],
          ]),
        )}
        ${field(
          "secure",
          "Who sees single updates",
          "With secure aggregation hospitals mask what they send, and only the sum can be unmasked: the aggregator learns no single update. A round needs its hospitals twice, and strategies that must see single updates cannot be had.",
          select("secure", [
            ["no", "the aggregator"],
            ["yes", "nobody: secure aggregation"],
          ]),
        )}
        ${strategyFields(values).group ? field("group", "Hospitals of a group, at least", "The strategy goes by the sums of groups of so many. One of three can lose nobody.", input("group", { inputmode: "numeric" })) : nothing}
        ${strategyFields(values).mu ? field("mu", "FedProx: mu", "How strongly each hospital is held to the global model; 0 is FedAvg.", input("mu", { inputmode: "decimal" })) : nothing}
      </div>
    </fieldset>
    <fieldset>
      <legend>Training at a hospital</legend>
      <div class="fields">
        ${field("epochs", "Local epochs", "How often a hospital goes through its pictures each round.", input("epochs", { inputmode: "numeric" }))}
        ${field("rate", "Learning rate", "The size of a training step; too large forgets, too small learns nothing.", input("rate", { inputmode: "decimal" }))}
      </div>
    </fieldset>
    <details id="advanced">
      <summary>More about training and evaluation</summary>
      <div class="fields">
        ${field("batch", "Batch size", "Pictures in one training step; larger ones need more memory.", input("batch", { inputmode: "numeric" }))}
        ${field("size", "Picture size in pixels", "Pictures are scaled to a square of this side; ImageNet's networks expect 224.", input("size", { inputmode: "numeric" }))}
        ${field("train_cap", "Training pictures, at most", "A hospital and round; empty: all of them.", input("train_cap", { inputmode: "numeric" }))}
        ${field("evaluate_every", "Rounds from one evaluation to the next", "1: the model is evaluated after every round. After the last it always is.", input("evaluate_every", { inputmode: "numeric" }))}
        ${field(
          "flips",
          "Looking at a picture",
          "From all sides: four times the work for an answer, which is the mean of four and a little better.",
          select("flips", [
            ["no", "as it is"],
            ["yes", "from all sides"],
          ]),
        )}
        ${
          canCalibrate(values)
            ? field(
                "calibrate",
                "Calibration",
                "On held-out lesions, find how far the published model's shares can be believed, when to warn of the class that must not be missed, and which pictures are none that it knows.",
                select("calibrate", [
                  ["yes", "yes"],
                  ["no", "no"],
                ]),
              )
            : nothing
        }
        ${calibrates(values) ? field("sensitivity", "Sensitivity of the warning in %", "So many pictures of the class that must not be missed it is to find. The more, the more warnings are false.", input("sensitivity", { inputmode: "decimal" })) : nothing}
        ${field("held_out_cap", "Held-out pictures, at most", "A hospital's evaluation; empty: all of them.", input("held_out_cap", { inputmode: "numeric" }))}
        ${field(
          "schedule",
          "Course over the rounds",
          "The learning rate falls to a tenth within every round, or to nothing over the whole job, which ends better where rounds are many and their number is known.",
          select("schedule", [
            ["round", "falls in every round"],
            ["job", "falls over the whole job"],
          ]),
        )}
        ${field(
          "balance",
          "Rare classes",
          "Two thirds of the pictures are common moles: rare lesions count more in the loss, are drawn more often, are met by each hospital's own shares of the classes, which suits hospitals that are unlike each other, or none of these.",
          select("balance", [
            ["loss", "count more in the loss"],
            ["sampling", "are drawn more often"],
            ["logit", "are met by each hospital's shares"],
            ["none", "are left as they are"],
          ]),
        )}
        ${
          values.balance === "logit"
            ? field(
                "own_shares",
                "How often classes come",
                "The model knows what speaks for a class, and not how often it comes. Each hospital's pictures can be evaluated by its own shares of the classes, which is more accurate over all; so can those that are predicted later, if it is told then how often each class comes.",
                select("own_shares", [
                  ["no", "as though all came equally often"],
                  ["yes", "by each hospital's shares"],
                ]),
              )
            : nothing
        }
        ${field(
          "privacy",
          "Differential privacy",
          "Each lesion's part in a training step is cut to a length, and noise is added, so that nobody can tell well from the updates whether a lesion was there. It costs accuracy. Needs a network with group normalisation or ConvNeXt, or an adapter; hospitals count what it costs, and refuse what goes past their budgets.",
          select("privacy", [
            ["none", "none"],
            ["lesion", "of lesions, with all their pictures"],
          ]),
        )}
        ${isPrivate(values) ? field("noise", "Noise", "In multiples of the length. More noise, a smaller ε.", input("noise", { inputmode: "decimal" })) : nothing}
        ${isPrivate(values) ? field("clip", "Length of a lesion's gradient, at most", "Longer ones are cut to it.", input("clip", { inputmode: "decimal" })) : nothing}
        ${field("seed", "Seed", "The same seed and pictures give the same draws again.", input("seed", { inputmode: "numeric" }))}
      </div>
    </details>`;
}

function fieldOf(name, label, help, control, faults) {
  return html`<div class="field">
    <label for=${name}>${label}</label>
    ${control}
    <small id="${name}-help">${help}</small>
    <p class="fault" id="${name}-fault">${faults[name] ?? nothing}</p>
  </div>`;
}

function inputOf(name, values, faults, { inputmode, maxlength, autocomplete = "off", spellcheck }) {
  return html`<input
    id=${name}
    name=${name}
    .value=${values[name]}
    inputmode=${inputmode ?? nothing}
    maxlength=${maxlength ?? nothing}
    autocomplete=${autocomplete}
    spellcheck=${spellcheck ?? nothing}
    aria-describedby="${name}-help ${name}-fault"
    aria-invalid=${faults[name] ? "true" : nothing}
  />`;
}

function selectOf(name, values, faults, options) {
  return html`<select
    id=${name}
    name=${name}
    aria-describedby="${name}-help ${name}-fault"
    aria-invalid=${faults[name] ? "true" : nothing}
  >
    ${options.map(([value, label]) => html`<option value=${value} .selected=${values[name] === value}>${label}</option>`)}
  </select>`;
}

const STRATEGIES = [
  ["fedavg", "FedAvg"],
  ["fedprox", "FedProx"],
  ["fedavgm", "FedAvg with momentum"],
  ["fedadam", "FedAdam"],
  ["fedyogi", "FedYogi"],
  ["fedadagrad", "FedAdagrad"],
  ["scaffold", "SCAFFOLD"],
  ["fednova", "FedNova"],
  ["qfedavg", "q-FedAvg, fair"],
  ["class_balanced", "every class alike"],
  ["fedbn", "FedBN, own normalisation"],
  ["fedrep", "own last layer"],
  ["fedbuff", "FedBuff, asynchronous"],
  ["norm_clipping", "norm clipping"],
  ["dp_fedavg", "DP-FedAvg, noise at the centre"],
  ["median", "median"],
  ["trimmed_mean", "trimmed mean"],
  ["geometric_median", "geometric median"],
  ["centred_clipping", "centred clipping"],
  ["krum", "Krum"],
  ["multi_krum", "Multi-Krum"],
  ["bulyan", "Bulyan"],
];

const STRATEGY_HELP = {
  mean: "Updates are averaged by their numbers of pictures; FedProx also keeps each hospital near the global model, which helps where data differ.",
  server: "The mean change is a step of an optimiser at the centre, which remembers from round to round.",
  uneven:
    "For hospitals that differ: steps are corrected, normalised, or hospitals are weighed by how badly the model does there, or by their parts of each class.",
  own: "Each hospital keeps some of its weights to itself and goes on with them from round to round; the rest is averaged.",
  noised:
    "Updates are cut to one length and noise is added to their sum, so that whoever has the models alone cannot tell well whether a lesion was there. Whoever runs the centre sees updates without it, so hospitals with a budget take part where they have said that this counts. The noise hides whole hospitals too, so it takes many of them, hundreds rather than a handful, and an adapter: it goes onto all that moves.",
  buffered: "A round closes with its first quorum, and what comes later counts in the next one, with less weight.",
  robust:
    "Bears some hospitals that send wrong or hostile updates; who gave how many pictures counts little or nothing.",
};

function strategyGroup(name) {
  if (["fedavg", "fedprox"].includes(name)) return "mean";
  if (["fedavgm", "fedadam", "fedyogi", "fedadagrad"].includes(name)) return "server";
  if (["scaffold", "fednova", "qfedavg", "class_balanced"].includes(name)) return "uneven";
  if (["fedbn", "fedrep"].includes(name)) return "own";
  if (name === "dp_fedavg") return "noised";
  return name === "fedbuff" ? "buffered" : "robust";
}

const networks = () => [
  ...Object.entries(MODEL_BYTES).map(([name, size]) => [name, `${architecture(name)} (${Math.round(size / 1e6)} MB)`]),
  ["timm", "another one, of timm"],
];

const weightKinds = (models) => [
  ["imagenet", "ImageNet"],
  ["random", "Random"],
  ...(models?.length ? [["model", "A published model"]] : []),
  ["artifact", "A stored file, by its digest"],
];

const published = (models) => [
  ["", "Choose…"],
  ...models.map((model) => [
    model.digest,
    `${architecture(model.architecture)}, ${count(model.rounds)} rounds, ${moment(model.published_at)} (${brief(model.digest)})`,
  ]),
];

const weightsHelp = (kind) =>
  ({
    imagenet: "Trained on everyday pictures: learns lesions in far fewer rounds. May be downloaded once.",
    random: "Drawn from the seed: nothing learnt yet, so many rounds are needed.",
    model: "Go on where an earlier job ended.",
    artifact: "A file that was uploaded before.",
  })[kind];
