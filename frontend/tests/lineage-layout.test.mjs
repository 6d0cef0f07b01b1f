import assert from "node:assert/strict";
import { test } from "node:test";
import { edgesOf, graphOf, grouped } from "../src/ledger/graph.js";
import { directionFor, layout, limitFor } from "../src/ledger/layout.js";

const address = (number) => `0x${number.toString(16).padStart(40, "0")}`;

/** A job with `rounds` rounds of `hospitals` updates; every third round given up, every fifth update left out. */
function job(rounds, hospitals, { published = true, last = "closed" } = {}) {
  let head = "00".repeat(32);
  const list = [];
  for (let round = 1; round <= rounds; round += 1) {
    const status = round === rounds ? last : round % 3 === 0 ? "aborted" : "closed";
    const updates = Array.from({ length: hospitals }, (_, at) => ({
      update: { hospital: address(at + 1), digest: `${round}-${at}`, samples: 10 + at },
      reason: at > 0 && at % 5 === 0 ? 7 : null,
    }));
    const digest = status === "closed" ? round.toString(16).padStart(64, "0") : null;
    list.push({ round, status, base: head, global_digest: digest, updates });
    head = digest ?? head;
  }
  return { job: "ab".repeat(32), head, published, rounds: list };
}

const SIZES = [1, 2, 3, 6, 7, 12, 50];
const WIDTHS = [320, 390, 700, 1180, 1600];

function* cases() {
  for (const rounds of SIZES) {
    for (const hospitals of SIZES) {
      for (const width of WIDTHS) {
        for (const opened of ["none", "all"]) {
          if (opened === "all" && rounds * hospitals > 700) continue;
          const ledger = job(rounds, hospitals);
          const limit = limitFor(directionFor(width), width);
          const open = opened === "all" ? new Set(grouped(graphOf(ledger, { limit }))) : new Set();
          yield {
            label: `${rounds} rounds, ${hospitals} hospitals, ${width} px, ${opened} open`,
            graph: graphOf(ledger, { limit, open }),
            width,
          };
        }
      }
    }
  }
}

const overlap = (one, other) =>
  one.x < other.x + other.width &&
  other.x < one.x + one.width &&
  one.y < other.y + other.height &&
  other.y < one.y + one.height;

const within = (inner, outer) =>
  inner.x >= outer.x &&
  inner.y >= outer.y &&
  inner.x + inner.width <= outer.x + outer.width &&
  inner.y + inner.height <= outer.y + outer.height;

const onBorder = ({ x, y }, box) =>
  ((x === box.x || x === box.x + box.width) && y > box.y && y < box.y + box.height) ||
  ((y === box.y || y === box.y + box.height) && x > box.x && x < box.x + box.width);

const inside = ({ x, y }, box) =>
  x > box.x + 1e-6 && x < box.x + box.width - 1e-6 && y > box.y + 1e-6 && y < box.y + box.height - 1e-6;

/** Points along an edge as it is drawn: a cubic between two points, straight lines where there are more. */
function* along({ points }, direction) {
  for (const [at, start] of points.slice(0, -1).entries()) {
    const end = points[at + 1];
    for (let step = 0; step <= 20; step += 1) {
      const t = step / 20;
      const eased = points.length === 2 ? 3 * (1 - t) * t * t + t ** 3 : t;
      const middle = points.length === 2 ? 1.5 * (1 - t) ** 2 * t + 1.5 * (1 - t) * t * t + t ** 3 : t;
      const [tx, ty] = direction === "right" ? [middle, eased] : [eased, middle];
      yield { x: start.x + (end.x - start.x) * tx, y: start.y + (end.y - start.y) * ty };
    }
  }
}

test("boxes never overlap, stay inside, and edges connect and run between them", () => {
  for (const { label, graph, width } of cases()) {
    const placed = layout(graph, { width });
    const byId = new Map(placed.boxes.map((box) => [box.node.id, box]));
    assert.equal(byId.size, placed.boxes.length, label);
    const outer = { x: 0, y: 0, width: placed.width, height: placed.height };
    for (const [at, box] of placed.boxes.entries()) {
      assert.ok(within(box, outer), `${label}: ${box.node.id} is outside`);
      if (box.inside) assert.ok(within(box, byId.get(box.inside)), `${label}: ${box.node.id} left its frame`);
      for (const other of placed.boxes.slice(at + 1)) {
        const framed = box.inside === other.node.id || other.inside === box.node.id;
        if (!framed && overlap(box, other)) assert.fail(`${label}: ${box.node.id} and ${other.node.id} overlap`);
      }
    }
    for (const edge of placed.edges) {
      const [from, to] = [byId.get(edge.from), byId.get(edge.to)];
      assert.ok(
        onBorder(edge.points[0], from) && onBorder(edge.points.at(-1), to),
        `${label}: ${edge.from} → ${edge.to}`,
      );
      assert.doesNotMatch(edge.path, /NaN|undefined/);
    }
  }
});

test("no edge runs through a box", () => {
  for (const [rounds, hospitals] of [
    [1, 1],
    [3, 3],
    [7, 6],
    [12, 3],
    [50, 2],
    [7, 12],
  ]) {
    for (const width of WIDTHS) {
      const limit = limitFor(directionFor(width), width);
      const placed = layout(graphOf(job(rounds, hospitals), { limit }), { width });
      for (const edge of placed.edges) {
        for (const point of along(edge, placed.direction)) {
          const hit = placed.boxes.find((box) => inside(point, box));
          if (hit)
            assert.fail(`${rounds}×${hospitals} at ${width}: ${edge.from} → ${edge.to} runs through ${hit.node.id}`);
        }
      }
    }
  }
});

test("what is wide stays within its width unless one group alone is wider", () => {
  for (const width of [700, 1180]) {
    assert.equal(layout(graphOf(job(50, 50)), { width }).width, width);
    assert.equal(layout(graphOf(job(12, 3)), { width }).width, width);
  }
  const phone = layout(graphOf(job(50, 50), { limit: limitFor("down", 340) }), { width: 340 });
  assert.equal(phone.direction, "down");
  assert.equal(phone.width, 340);
});

test("everything leads to the end: each model from its counted updates, each round from the one before", () => {
  const graph = graphOf(job(4, 6));
  const edges = edgesOf(graph);
  const into = (id) => edges.filter((edge) => edge.to === id);
  assert.equal(into("end-1").length, 5); // the sixth was left out
  assert.ok(into("end-1").every((edge) => edge.kind === "fold"));
  assert.equal(into("end-3").length, 6);
  assert.ok(into("end-3").every((edge) => edge.kind === "void"));
  assert.equal(into(`update-4-${address(1)}`)[0].from, "end-3");
  assert.deepEqual(into("published"), [{ from: "end-4", to: "published", kind: "publish" }]);
  const reached = new Set(["initial"]);
  for (const edge of edges) if (reached.has(edge.from)) reached.add(edge.to);
  for (const stage of graph.stages) assert.ok(reached.has(stage.end.id));
});

test("many updates become one group that opens", () => {
  const closed = graphOf(job(2, 50));
  assert.deepEqual(grouped(closed), [1, 2]);
  const small = layout(closed, { width: 1180 });
  assert.equal(small.boxes.filter((box) => box.node.kind === "update").length, 0);
  const opened = layout(graphOf(job(2, 50), { open: new Set([2]) }), { width: 1180 });
  assert.equal(opened.boxes.filter((box) => box.node.kind === "update").length, 50);
  assert.ok(opened.height > small.height);
  assert.deepEqual(grouped(graphOf(job(3, 6))), []);
});

test("a job that has only begun, and one without updates", () => {
  const open = graphOf(job(1, 0, { published: false, last: "open" }));
  const placed = layout(open, { width: 1180 });
  assert.deepEqual(
    placed.boxes.map((box) => box.node.kind),
    ["initial", "open"],
  );
  assert.deepEqual(
    placed.edges.map(({ from, to }) => [from, to]),
    [["initial", "end-1"]],
  );
  const empty = graphOf({ job: "", head: "cd".repeat(32), published: false, rounds: [] });
  assert.equal(layout(empty, { width: 390 }).boxes.length, 1);
});
