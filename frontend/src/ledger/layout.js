// Places a lineage graph: left to right in lines that are read like text, or top down where there is little width. Pure.
//
// Lengths are in CSS pixels. Boxes never overlap (updates lie inside the frame of their opened group); edges run in the
// gaps between them only.

import { edgesOf } from "./graph.js";

export const NODE = { width: 148, height: 48 };
const GAP = { along: 46, beside: 10, line: 40 };
const FRAME = { head: 36, pad: 10 };
const MARGIN = { left: 30, right: 26, top: 10, bottom: 12 };
const NARROW = 560;
const CORNER = 8;

/** "right" or "down", whichever reads better in `width` pixels. */
export const directionFor = (width) => (width < NARROW ? "down" : "right");

/** How many updates stand side by side (or one under the other) before they are grouped. */
export const limitFor = (direction, width) =>
  direction === "right" ? 6 : Math.max(1, Math.floor((width - 20 + GAP.beside) / (NODE.width + GAP.beside)));

/**
 * Place a graph in `width` pixels. Returns `{width, height, direction, boxes, edges}`: boxes are `{node, x, y, width,
 * height, inside}` (`inside`: the id of the group that frames it), edges `{from, to, kind, points, path}`.
 */
export function layout(graph, { width, direction = directionFor(width) }) {
  const units = unitsOf(graph, direction, width);
  return direction === "right" ? inLines(graph, units, width) : downwards(graph, units, width);
}

// A unit is a list of blocks that stay together; a block is one or more boxes placed relative to its corner.
function unitsOf(graph, direction, width) {
  const units = [[single(graph.initial)]];
  for (const stage of graph.stages) {
    const end = single(stage.end);
    if (stage.updates.length === 0) units.push([end]);
    else units.push([updatesBlock(stage, direction, width), end]);
  }
  if (graph.published) units.push([single(graph.published)]);
  return units;
}

const single = (node) => ({ ...NODE, boxes: [{ node, x: 0, y: 0, ...NODE, inside: null }] });

function updatesBlock({ updates, group }, direction, width) {
  if (!group) return grid(updates, direction === "right" ? 1 : updates.length, { x: 0, y: 0 }, null);
  if (!group.open) return single(group);
  const room = Math.floor((width - 20 - 2 * FRAME.pad + GAP.beside) / (NODE.width + GAP.beside));
  const columns = Math.max(
    1,
    Math.min(room, direction === "right" ? Math.ceil(updates.length / 8) : updates.length, 6),
  );
  const inner = grid(updates, columns, { x: FRAME.pad, y: FRAME.head }, group.id);
  const size = { width: inner.width + 2 * FRAME.pad, height: inner.height + FRAME.head + FRAME.pad };
  return { ...size, boxes: [{ node: group, x: 0, y: 0, ...size, inside: null }, ...inner.boxes] };
}

function grid(nodes, columns, origin, inside) {
  const boxes = nodes.map((node, at) => ({
    node,
    x: origin.x + (at % columns) * (NODE.width + GAP.beside),
    y: origin.y + Math.floor(at / columns) * (NODE.height + GAP.beside),
    ...NODE,
    inside,
  }));
  const rows = Math.ceil(nodes.length / columns);
  return {
    width: columns * (NODE.width + GAP.beside) - GAP.beside,
    height: rows * (NODE.height + GAP.beside) - GAP.beside,
    boxes,
  };
}

function inLines(graph, units, width) {
  const lines = [];
  const usable = width - MARGIN.left - MARGIN.right;
  let used = Number.POSITIVE_INFINITY;
  for (const unit of units) {
    const length = unit.reduce((sum, block) => sum + block.width + GAP.along, -GAP.along);
    if (used + GAP.along + length > usable) {
      lines.push([]);
      used = -GAP.along;
    }
    lines.at(-1).push(...unit);
    used += GAP.along + length;
  }
  const boxes = [];
  const lineOf = new Map(); // node id → its line
  const gutters = []; // y of the gap above each line
  let top = MARGIN.top;
  let farthest = 0;
  for (const [number, line] of lines.entries()) {
    const height = Math.max(...line.map((block) => block.height));
    let x = MARGIN.left;
    gutters.push(top - GAP.line / 2);
    for (const block of line) {
      place(block, x, top + (height - block.height) / 2, boxes);
      for (const { node } of block.boxes) lineOf.set(node.id, number);
      x += block.width + GAP.along;
    }
    farthest = Math.max(farthest, x - GAP.along + MARGIN.right);
    top += height + GAP.line;
  }
  const connect = (from, to) => {
    const start = { x: from.x + from.width, y: from.y + from.height / 2 };
    const end = { x: to.x, y: to.y + to.height / 2 };
    const line = lineOf.get(to.node.id);
    if (lineOf.get(from.node.id) === line) return [start, end];
    const [out, back] = [start.x + MARGIN.right / 2, MARGIN.left / 2 - 3];
    const gutter = gutters[line];
    return [start, { x: out, y: start.y }, { x: out, y: gutter }, { x: back, y: gutter }, { x: back, y: end.y }, end];
  };
  const size = { width: Math.max(width, farthest), height: top - GAP.line + MARGIN.bottom };
  return finished(graph, boxes, "right", size, connect);
}

function downwards(graph, units, width) {
  const blocks = units.flat();
  const widest = Math.max(width, ...blocks.map((block) => block.width + 20));
  const boxes = [];
  let top = MARGIN.top;
  for (const block of blocks) {
    place(block, (widest - block.width) / 2, top, boxes);
    top += block.height + GAP.along;
  }
  const connect = (from, to) => [
    { x: from.x + from.width / 2, y: from.y + from.height },
    { x: to.x + to.width / 2, y: to.y },
  ];
  return finished(graph, boxes, "down", { width: widest, height: top - GAP.along + MARGIN.bottom }, connect);
}

function place(block, x, y, boxes) {
  for (const box of block.boxes) boxes.push({ ...box, x: box.x + x, y: box.y + y });
}

function finished(graph, boxes, direction, size, connect) {
  const boxOf = new Map(boxes.map((box) => [box.node.id, box]));
  const edges = edgesOf(graph).map((edge) => {
    const points = connect(boxOf.get(edge.from), boxOf.get(edge.to));
    return { ...edge, points, path: points.length === 2 ? curve(points, direction) : bent(points) };
  });
  return { ...size, direction, boxes, edges };
}

function curve([start, end], direction) {
  const half = direction === "right" ? (end.x - start.x) / 2 : (end.y - start.y) / 2;
  const [dx, dy] = direction === "right" ? [half, 0] : [0, half];
  return `M${start.x} ${start.y}C${start.x + dx} ${start.y + dy} ${end.x - dx} ${end.y - dy} ${end.x} ${end.y}`;
}

/** A path along right-angled points, its corners rounded. */
function bent(points) {
  const parts = [`M${points[0].x} ${points[0].y}`];
  for (const [at, corner] of points.entries()) {
    if (at === 0 || at === points.length - 1) continue;
    const [before, after] = [towards(corner, points[at - 1]), towards(corner, points[at + 1])];
    parts.push(`L${before.x} ${before.y}Q${corner.x} ${corner.y} ${after.x} ${after.y}`);
  }
  return `${parts.join("")}L${points.at(-1).x} ${points.at(-1).y}`;
}

function towards(corner, other) {
  const [dx, dy] = [other.x - corner.x, other.y - corner.y];
  const length = Math.hypot(dx, dy) || 1;
  const part = Math.min(CORNER, length / 2) / length;
  return { x: corner.x + dx * part, y: corner.y + dy * part };
}
