// Maps of where the network looked: scaled up smoothly, coloured, and said in words. Pure.
//
// A grid is rows from the top, values from 0 to 1, and covers the whole picture: the model sees it scaled to a square.
// Colours: five points of viridis (van der Walt and Smith, CC0), which keeps its order in grey and for colour-blind eyes.

const STOPS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];
const REGIONS = [
  ["upper left", "top", "upper right"],
  ["left", "centre", "right"],
  ["lower left", "bottom", "lower right"],
];
const NEARLY = 0.75; // of the strongest region: counts as one of the strongest
const EVERYWHERE = "all over the picture";
const EVEN = 6; // regions as strong as each other: no place in particular

/** A colour `[red, green, blue]` of 0..255 for a value; outside 0..1 it is the nearest end's. */
export function colour(value) {
  const at = Math.min(1, Math.max(0, value)) * (STOPS.length - 1);
  const from = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[from].map((channel, index) => Math.round(channel + (STOPS[from + 1][index] - channel) * (at - from)));
}

/** How opaque a value is drawn, 0..1: what drew no attention stays as it is in the picture. */
export function opacity(value) {
  const v = Math.min(1, Math.max(0, value));
  return v * v * (3 - 2 * v);
}

/**
 * A grid at another size by bilinear interpolation between the middles of its cells; beyond the outermost middles their
 * values go on. A `Float32Array` of `width * height`, by rows.
 */
export function upscaled(grid, width, height) {
  const out = new Float32Array(width * height);
  const across = steps(grid[0].length, width);
  const down = steps(grid.length, height);
  for (let y = 0; y < height; y += 1) {
    const [top, bottom, v] = down[y];
    for (let x = 0; x < width; x += 1) {
      const [left, right, u] = across[x];
      const above = grid[top][left] * (1 - u) + grid[top][right] * u;
      const below = grid[bottom][left] * (1 - u) + grid[bottom][right] * u;
      out[y * width + x] = above * (1 - v) + below * v;
    }
  }
  return out;
}

/** RGBA bytes of a map, as `ImageData` takes them. */
export function coloured(grid, width, height) {
  const bytes = new Uint8ClampedArray(width * height * 4);
  upscaled(grid, width, height).forEach((value, index) => {
    bytes.set([...colour(value), Math.round(opacity(value) * 255)], index * 4);
  });
  return bytes;
}

/** Roughly where a map is strongest: "centre and upper left". Empty where it is nothing anywhere. */
export function whereabouts(grid) {
  const means = REGIONS.flatMap((row, y) => row.map((name, x) => ({ name, mean: regionMean(grid, x, y) })));
  const most = Math.max(...means.map(({ mean }) => mean));
  if (!(most > 0)) return "";
  const strongest = means.filter(({ mean }) => mean >= most * NEARLY).sort((one, other) => other.mean - one.mean);
  if (strongest.length >= EVEN) return EVERYWHERE;
  const names = strongest.slice(0, 3).map(({ name }) => name);
  return names.length === 1 ? names[0] : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** A sentence about a map for those who do not see it. */
export function inWords(grid, name) {
  const where = whereabouts(grid);
  if (where === "") return `Nothing in the picture spoke for ${name}.`;
  if (where === EVERYWHERE) return `For ${name} the network looked ${where}.`;
  return `For ${name} the network looked mostly here: ${where}.`;
}

/** For each of `count` new points: the cells on both sides of it, and how far it is from the first to the second. */
function steps(cells, count) {
  return Array.from({ length: count }, (_, index) => {
    const at = Math.min(cells - 1, Math.max(0, ((index + 0.5) * cells) / count - 0.5));
    const from = Math.floor(at);
    return [from, Math.min(from + 1, cells - 1), at - from];
  });
}

/** The mean over one of nine parts, cells on its border counted by the share of them that lies inside. */
function regionMean(grid, x, y) {
  let sum = 0;
  let weight = 0;
  grid.forEach((row, i) => {
    const tall = share(i, grid.length, y);
    row.forEach((value, j) => {
      const area = tall * share(j, row.length, x);
      sum += value * area;
      weight += area;
    });
  });
  return sum / weight;
}

/** How much of the cell `index` of `count` lies in the `third`th third, as a share of the whole side. */
function share(index, count, third) {
  const from = Math.max(index / count, third / 3);
  const to = Math.min((index + 1) / count, (third + 1) / 3);
  return Math.max(0, to - from);
}
