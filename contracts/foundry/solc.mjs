#!/usr/bin/env node
// The little of native solc's command line that forge asks for, answered by the pinned solc-js: forge would otherwise
// download a compiler.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const CONTRACTS = join(dirname(fileURLToPath(import.meta.url)), "..");

function resolveImport(name) {
  try {
    return { contents: readFileSync(join(CONTRACTS, name.startsWith("@") ? "node_modules" : "", name), "utf8") };
  } catch (failure) {
    return { error: failure.message };
  }
}

const options = process.argv.slice(2);
if (options.includes("--version")) {
  process.stdout.write(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}\n`);
} else if (options.includes("--standard-json")) {
  process.stdout.write(solc.compile(readFileSync(0, "utf8"), { import: resolveImport }));
} else {
  process.stderr.write("usage: solc.mjs --version | --standard-json\n");
  process.exitCode = 2;
}
