// Draws a lineage that `layout.js` placed: nodes are links, groups open and close.

import { brief } from "../format.js";
import { nothing, svg } from "../html.js";
import { reason } from "../reasons.js";
import { images, updateHref, updates } from "./words.js";

const CHARACTERS = 16; // that fit into a node

/** The picture. `job` is its id, `who(address)` a hospital's name, `toggle(round)` opens or closes a round's updates. */
export function drawing(placed, { job, who, toggle }) {
  const { width, height, boxes, edges } = placed;
  return svg`<svg class="lineage" width=${width} height=${height} viewBox="0 0 ${width} ${height}" role="group"
      aria-label="Lineage of the job, from initial weights to the newest model">
    <defs>
      <marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
        <path class="tip" d="M0 0.5L7.5 4L0 7.5z"></path>
      </marker>
    </defs>
    ${edges.map((edge) => svg`<path class="edge ${edge.kind}" d=${edge.path} marker-end="url(#arrow)"></path>`)}
    ${boxes.map((box) => (box.node.kind === "group" ? groupBox(box, toggle) : linkBox(box, job, who)))}
  </svg>`;
}

function linkBox({ node, x, y, width, height }, job, who) {
  const { title, note, label, href } = nodeText(node, job, who);
  const rejected = node.kind === "update" && node.reason !== null;
  return svg`<a class="node ${node.kind} ${rejected ? "rejected" : ""}" href=${href} aria-label=${label}
      transform="translate(${x} ${y})">
    <title>${label}</title>
    <rect width=${width} height=${height} rx="9"></rect>
    <text x="11" y="20" class="name">${title}</text>
    <text x="11" y="37" class="note">${note}</text>
  </a>`;
}

function groupBox({ node, x, y, width, height }, toggle) {
  const note = node.open ? "" : node.rejected ? `${node.rejected} left out` : "press to open";
  const label = `${updates(node.count)} ${note || "open"}, round ${node.round}`;
  const face = node.open ? { width: Math.min(width, 200), height: 32 } : { width, height };
  const press = (event) => {
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    toggle(node.round);
  };
  return svg`<g class="node group ${node.open ? "open" : ""}" transform="translate(${x} ${y})">
    ${node.open ? svg`<rect class="frame" width=${width} height=${height} rx="11"></rect>` : nothing}
    <g role="button" tabindex="0" aria-expanded=${node.open ? "true" : "false"} aria-label=${label} @click=${press}
        @keydown=${press}>
      ${node.open ? nothing : svg`<rect class="under" x="4" y="4" width=${width} height=${height} rx="9"></rect>`}
      <rect class="face" width=${face.width} height=${face.height} rx="9"></rect>
      <path class="sign" d=${node.open ? "M12 16h9" : "M12 16h9M16.5 11.5v9"}></path>
      <text x="27" y="20.5" class="name">${updates(node.count)}</text>
      ${note ? svg`<text x="11" y="38" class="note">${note}</text>` : nothing}
    </g>
  </g>`;
}

/** What a node says: a title and a note, a whole label that begins with them, and where it leads. */
export function nodeText(node, job, who) {
  const events = (kind, round = node.round) => `/ledger?job=${job}${round ? `&round=${round}` : ""}&kind=${kind}`;
  const text = (title, note, more, href) => ({ title: cut(title), note, label: `${cut(title)} ${note}${more}`, href });
  switch (node.kind) {
    case "initial":
      return text("Initial weights", brief(node.digest), "", events("RoundOpened", 1));
    case "update": {
      const name = who(node.hospital);
      const whose = cut(name) === name ? "update" : `update of ${name}`;
      const left = node.reason !== null;
      const more = `, ${whose} in round ${node.round}${left ? `: ${reason(node.reason)}` : ""}`;
      return text(name, left ? "left out" : images(node.samples), more, updateHref(job, node.round, node.hospital));
    }
    case "model":
      return text(
        `Model, round ${node.round}`,
        brief(node.digest),
        `, from ${updates(node.counted)}`,
        events("RoundClosed"),
      );
    case "aborted":
      return text(`Round ${node.round}`, "given up", ": the model stayed as it was", events("RoundAborted"));
    case "open":
      return text(`Round ${node.round}`, "under way", "", `/job?id=${job}`);
    default:
      return text("Published model", brief(node.digest), "", events("ModelPublished", 0));
  }
}

const cut = (text) => (text.length <= CHARACTERS ? text : `${text.slice(0, CHARACTERS - 1)}…`);
