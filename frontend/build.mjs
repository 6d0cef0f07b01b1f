// Builds the pages into dist/: bundles with hashed names, HTML around each page's own part, gzipped copies, a size limit.
//
// JavaScript is counted whole, chunks that only some pages load included: what a browser could be made to fetch.

import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import esbuild from "esbuild";
import { NAVIGATION, PAGES } from "./pages/index.mjs";

const LIMIT_KB = 150;
const OUT = new URL("dist/", import.meta.url);
const here = (path) => new URL(path, import.meta.url);
const escaped = (text) =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

await rm(OUT, { recursive: true, force: true });
await mkdir(new URL("assets/", OUT), { recursive: true });

const { metafile } = await esbuild.build({
  absWorkingDir: here(".").pathname,
  entryPoints: [...PAGES.map((page) => `src/pages/${page.name}.js`), "styles/main.css"],
  outdir: "dist/assets",
  entryNames: "[name]-[hash]",
  chunkNames: "shared-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

const outputs = Object.entries(metafile.outputs).map(([path, output]) => ({ path: path.replace("dist", ""), output }));
const outputOf = (entry) => outputs.find(({ output }) => output.entryPoint === entry);
const style = outputOf("styles/main.css").path;
const layout = await readFile(here("pages/layout.html"), "utf8");

for (const page of PAGES) {
  const script = outputOf(`src/pages/${page.name}.js`);
  const preloads = staticImports(script.output).map((path) => `<link rel="modulepreload" href="${path}">`);
  const navigation = NAVIGATION.map(({ href, label, page: name }) => {
    const current = name === (page.section ?? page.name) ? ' aria-current="page"' : "";
    return `<li><a href="${href}"${current}>${label}</a></li>`;
  });
  const values = {
    title: page.name === "index" ? page.title : `${page.title} · Concilia`,
    description: page.description,
    style,
    script: script.path,
  };
  const html = layout
    .replace(/{{(title|description|style|script)}}/g, (_, key) => escaped(values[key]))
    .replace("{{preloads}}", preloads.join("\n    "))
    .replace("{{navigation}}", navigation.join("\n          "))
    .replace("{{main}}", (await readFile(here(`pages/${page.name}.html`), "utf8")).trimEnd());
  await writeFile(new URL(`${page.name}.html`, OUT), html);
}
for (const name of await readdir(here("public/"))) {
  await writeFile(new URL(name, OUT), await readFile(here(`public/${name}`)));
}

await compress(OUT);
await report();

/** Paths of the chunks that a script imports before it runs, through any number of steps. */
function staticImports(output, seen = new Set()) {
  for (const { path, kind } of output.imports) {
    const found = path.replace("dist", "");
    if (kind !== "import-statement" || seen.has(found)) continue;
    seen.add(found);
    staticImports(metafile.outputs[path], seen);
  }
  return [...seen];
}

/** Writes a gzipped copy beside every text file, for servers that send those. */
async function compress(folder) {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const url = new URL(entry.isDirectory() ? `${entry.name}/` : entry.name, folder);
    if (entry.isDirectory()) await compress(url);
    else await writeFile(new URL(`${url.href}.gz`), gzipSync(await readFile(url), { level: 9 }));
  }
}

/** Prints what a browser loads, and fails above the limit. */
async function report() {
  let total = 0;
  for (const { path } of outputs.filter(({ path }) => path.endsWith(".js") || path.endsWith(".css"))) {
    const bytes = (await readFile(new URL(`.${path}.gz`, OUT))).length;
    if (path.endsWith(".js")) total += bytes;
    console.log(`${(bytes / 1000).toFixed(1).padStart(8)} kB gzipped  ${path}`);
  }
  console.log(`${(total / 1000).toFixed(1).padStart(8)} kB gzipped  JavaScript in all; the limit is ${LIMIT_KB} kB`);
  if (total > LIMIT_KB * 1000) {
    console.error("too much JavaScript");
    process.exitCode = 1;
  }
}
