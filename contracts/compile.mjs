// Compiles the contracts with the pinned solc-js and writes build/NAME.json, which is checked in; with --check it writes
// nothing and exits with 1, naming what differs from the files checked in.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const HERE = dirname(fileURLToPath(import.meta.url));
const TARGETS = {
  ConciliaLedger: "src/ConciliaLedger.sol",
  UniversalSignatureValidator: "src/UniversalSignatureValidator.sol",
  TestTypedWallet: "src/test/TestTypedWallet.sol",
  TestWallet: "src/test/TestWallet.sol",
  TestWalletFactory: "src/test/TestWalletFactory.sol",
};
const SETTINGS = {
  evmVersion: "shanghai", // Ganache 7.9.2 stops there
  metadata: { bytecodeHash: "none" }, // else a comment, or where a file lies, would change the bytecode
  optimizer: { enabled: true, runs: 1000 },
  viaIR: true,
};

function read(name) {
  return readFileSync(join(HERE, name.startsWith("@") ? "node_modules" : "", name), "utf8");
}

function resolveImport(name) {
  try {
    return { contents: read(name) };
  } catch (failure) {
    return { error: failure.message };
  }
}

/** Keys in order at every depth, so that the file does not depend on the compiler's. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

function compile() {
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(Object.values(TARGETS).map((name) => [name, { content: read(name) }])),
    settings: {
      ...SETTINGS,
      outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
    },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: resolveImport }));
  // OpenZeppelin's own warnings (5.4 calls a variable "error", which solc 0.8.37 advises against) are not ours to mend.
  const complaints = (output.errors ?? []).filter(
    ({ severity, sourceLocation }) => severity === "error" || !sourceLocation?.file.startsWith("@openzeppelin/"),
  );
  if (complaints.length > 0) {
    for (const complaint of complaints) process.stderr.write(`${complaint.formattedMessage}\n`);
    process.stderr.write("nothing was built: an error or a warning fails the build\n");
    process.exit(1);
  }
  return Object.entries(TARGETS).map(([contractName, source]) => {
    const { abi, evm } = output.contracts[source][contractName];
    return sorted({
      contractName,
      compiler: solc.version(),
      settings: SETTINGS,
      abi,
      bytecode: `0x${evm.bytecode.object}`,
      deployedBytecode: `0x${evm.deployedBytecode.object}`,
    });
  });
}

function differences(artifact, path) {
  let stored;
  try {
    stored = readFileSync(path, "utf8");
  } catch {
    return ["missing"];
  }
  if (stored === `${JSON.stringify(artifact, null, 2)}\n`) return [];
  let parsed;
  try {
    parsed = JSON.parse(stored);
  } catch {
    return ["not JSON"];
  }
  const keys = [...new Set([...Object.keys(artifact), ...Object.keys(parsed ?? {})])].sort();
  const differing = keys.filter((key) => JSON.stringify(artifact[key]) !== JSON.stringify(parsed?.[key]));
  return differing.length > 0 ? differing : ["layout of the file"];
}

const options = process.argv.slice(2);
if (options.some((option) => option !== "--check")) {
  process.stderr.write("usage: node compile.mjs [--check]\n");
  process.exit(2);
}
for (const artifact of compile()) {
  const name = `build/${artifact.contractName}.json`;
  const path = join(HERE, name);
  if (options.length === 0) {
    writeFileSync(path, `${JSON.stringify(artifact, null, 2)}\n`);
    continue;
  }
  const differing = differences(artifact, path);
  if (differing.length > 0) {
    process.stderr.write(`${name} differs from its source in: ${differing.join(", ")}; run node compile.mjs\n`);
    process.exitCode = 1;
  }
}
