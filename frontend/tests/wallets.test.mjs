// Wallets: found, asked, refusing, silent.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { discover, refusal, remember, remembered, Wallet } from "../src/wallets.js";

const PNG = "data:image/png;base64,AA";

/** A window in which wallets announce themselves when asked. */
function windowWith(...details) {
  const target = new EventTarget();
  target.addEventListener("eip6963:requestProvider", () => {
    for (const detail of details) {
      target.dispatchEvent(Object.assign(new Event("eip6963:announceProvider"), { detail }));
    }
  });
  return target;
}

const info = (name, rdns) => ({ uuid: `uuid of ${rdns}`, name, rdns, icon: PNG });
const provider = (request = async () => null) => ({ request });

/** A wallet whose answers are functions by method, and what it was asked. */
function walletOf(answers) {
  const asked = [];
  const request = async ({ method, params }) => {
    asked.push([method, ...params]);
    return answers[method](...params);
  };
  return { wallet: new Wallet(info("Foxy", "io.foxy"), { request }), asked };
}

const rpcError = (code, more = {}) => Object.assign(new Error(`rpc ${code}`), { code, ...more });
const thrown = (error) => () => Promise.reject(error);

test("MetaMask comes first, the others by name", async () => {
  const target = windowWith(
    { info: info("Zed", "z.zed"), provider: provider() },
    { info: info("Alpha", "a.alpha"), provider: provider() },
    { info: info("MetaMask", "io.metamask"), provider: provider() },
  );
  assert.deepEqual(
    (await discover(target)).map(({ name }) => name),
    ["MetaMask", "Alpha", "Zed"],
  );
});

test("a wallet that announces itself twice is one", async () => {
  const again = { info: info("Alpha", "a.alpha"), provider: provider() };
  assert.equal((await discover(windowWith(again, again))).length, 1);
});

test("announcements that are none are passed over", async () => {
  const target = windowWith(
    undefined,
    {},
    { info: info("No provider", "a") },
    { info: { uuid: "1", rdns: "b" }, provider: provider() },
    { info: { uuid: "1", name: "No rdns" }, provider: provider() },
    { info: { uuid: "1", name: 7, rdns: "c" }, provider: provider() },
    { info: info("Good", "g.good"), provider: provider() },
  );
  assert.deepEqual(
    (await discover(target)).map(({ name }) => name),
    ["Good"],
  );
});

test("an icon is a data URL of an image or nothing", () => {
  const icons = [PNG, "https://evil.example/track.png", "javascript:alert(1)", 7, undefined];
  assert.deepEqual(
    icons.map((icon) => new Wallet({ name: "W", rdns: "w", icon }, provider()).icon),
    [PNG, "", "", "", ""],
  );
});

test("window.ethereum counts only where nobody announces", async () => {
  const alone = Object.assign(windowWith(), { ethereum: { ...provider(), isMetaMask: true } });
  assert.deepEqual(
    (await discover(alone)).map(({ name, rdns }) => [name, rdns]),
    [["MetaMask", "window.ethereum"]],
  );
  const other = Object.assign(windowWith(), { ethereum: provider() });
  assert.equal((await discover(other))[0].name, "Browser wallet");
  const both = Object.assign(windowWith({ info: info("A", "a.a"), provider: provider() }), { ethereum: provider() });
  assert.deepEqual(
    (await discover(both)).map(({ name }) => name),
    ["A"],
  );
  assert.deepEqual(await discover(windowWith()), []);
});

test("the wallet of the last sign-in is found again by its name", async () => {
  const kept = new Map();
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  globalThis.window = windowWith(
    { info: info("A", "a.a"), provider: provider() },
    { info: info("B", "b.b"), provider: provider() },
  );
  try {
    assert.equal(await remembered(storage), undefined);
    remember({ rdns: "b.b" }, storage);
    assert.equal((await remembered(storage)).name, "B");
    remember({ rdns: "gone" }, storage);
    assert.equal(await remembered(storage), undefined);
    assert.deepEqual([...kept.values()], ["gone"], "nothing but the name is kept");
  } finally {
    delete globalThis.window;
  }
});

test("connecting asks, looking does not", async () => {
  const { wallet, asked } = walletOf({ eth_requestAccounts: () => ["0xA", "0xB"], eth_accounts: () => [] });
  assert.equal(await wallet.connect(), "0xA");
  assert.equal(await wallet.account(), undefined);
  assert.deepEqual(asked, [["eth_requestAccounts"], ["eth_accounts"]]);
  for (const none of [[], null]) {
    await assert.rejects(walletOf({ eth_requestAccounts: () => none }).wallet.connect(), { code: "wallet_locked" });
  }
});

test("messages go as the hex of their UTF-8 bytes (EIP-191), typed data as JSON (EIP-712)", async () => {
  const { wallet, asked } = walletOf({ personal_sign: () => "0x1", eth_signTypedData_v4: () => "0x2" });
  assert.equal(await wallet.signMessage("Grüße\n", "0xA"), "0x1");
  assert.equal(await wallet.signTypedData({ a: 1 }, "0xA"), "0x2");
  assert.deepEqual(asked, [
    ["personal_sign", "0x4772c3bcc39f650a", "0xA"],
    ["eth_signTypedData_v4", "0xA", '{"a":1}'],
  ]);
});

test("refusals become sentences", async () => {
  const cases = [
    ["personal_sign", rpcError(4001), "wallet_refused", /declined to sign in Foxy/],
    ["eth_signTypedData_v4", rpcError(4001), "wallet_refused", /declined to sign in Foxy/],
    ["eth_requestAccounts", rpcError(4001), "wallet_refused", /declined to connect/],
    ["wallet_addEthereumChain", rpcError(4001), "wallet_refused", /declined to change the network/],
    ["wallet_switchEthereumChain", rpcError(4902), "wallet_unknown_chain", /does not know that network/],
    [
      "wallet_switchEthereumChain",
      rpcError(-32603, { data: { originalError: { code: 4902 } } }),
      "wallet_unknown_chain",
      /network/,
    ],
    ["eth_requestAccounts", rpcError(-32002), "wallet_busy", /still waiting/],
    ["personal_sign", rpcError(4100), "wallet_locked", /locked/],
    ["personal_sign", rpcError(-32603), "wallet_error", /Foxy says: rpc -32603/],
    ["personal_sign", "just text", "wallet_error", /something went wrong/],
    ["personal_sign", undefined, "wallet_error", /something went wrong/],
  ];
  for (const [method, error, code, said] of cases) {
    const problem = refusal(error, method, "Foxy");
    assert.equal(problem.code, code, method);
    assert.match(problem.message, said);
  }
  const { wallet } = walletOf({ personal_sign: thrown(rpcError(4001)) });
  await assert.rejects(wallet.signMessage("m", "0xA"), { name: "Problem", code: "wallet_refused" });
});

const WANTED = { chainId: 1337, name: "Concilia consortium", rpcUrl: "https://a.example/rpc" };

test("switching to a chain that the wallet knows", async () => {
  const { wallet, asked } = walletOf({ wallet_switchEthereumChain: () => null, eth_chainId: () => "0x539" });
  await wallet.switchTo(WANTED);
  assert.deepEqual(asked, [["wallet_switchEthereumChain", { chainId: "0x539" }], ["eth_chainId"]]);
});

test("a chain that it does not know is added (EIP-3085)", async () => {
  let chain = "0x1";
  const { wallet, asked } = walletOf({
    wallet_switchEthereumChain: thrown(rpcError(4902)),
    wallet_addEthereumChain: ({ chainId }) => {
      chain = chainId;
      return null;
    },
    eth_chainId: () => chain,
  });
  await wallet.switchTo(WANTED);
  assert.deepEqual(asked[1], [
    "wallet_addEthereumChain",
    {
      chainId: "0x539",
      chainName: WANTED.name,
      rpcUrls: [WANTED.rpcUrl],
      nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    },
  ]);
});

test("a wallet that says yes and stays is told on", async () => {
  const { wallet } = walletOf({ wallet_switchEthereumChain: () => null, eth_chainId: () => "0x1" });
  await assert.rejects(wallet.switchTo(WANTED), { code: "wallet_chain" });
});

test("a refusal to switch adds nothing", async () => {
  const { wallet, asked } = walletOf({ wallet_switchEthereumChain: thrown(rpcError(4001)) });
  await assert.rejects(wallet.switchTo(WANTED), { code: "wallet_refused" });
  assert.equal(asked.length, 1);
});

test("silence ends after three minutes, and an answer before that leaves no timer", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const { wallet } = walletOf({ eth_chainId: () => new Promise(() => {}), eth_accounts: () => ["0xA"] });
    const asking = wallet.chain();
    let ended = false;
    asking.catch(() => {}).finally(() => (ended = true));
    mock.timers.tick(179_999);
    await new Promise(setImmediate);
    assert.equal(ended, false);
    mock.timers.tick(1);
    await assert.rejects(asking, { code: "wallet_silent", message: "Foxy did not answer." });
    const cleared = mock.method(globalThis, "clearTimeout");
    assert.equal(await wallet.account(), "0xA");
    assert.equal(cleared.mock.callCount(), 1);
  } finally {
    mock.restoreAll();
    mock.timers.reset();
  }
});

test("changes of account and chain are told until told to stop", async () => {
  const listeners = new Map();
  const wallet = new Wallet(info("Foxy", "io.foxy"), {
    request: async () => null,
    on: (name, listener) => listeners.set(name, listener),
    removeListener: (name, listener) => listeners.get(name) === listener && listeners.delete(name),
  });
  const told = [];
  const stop = wallet.watch({ account: (address) => told.push(address), chain: (id) => told.push(id) });
  listeners.get("accountsChanged")(["0xB", "0xA"]);
  listeners.get("accountsChanged")([]);
  listeners.get("chainChanged")("0x539");
  assert.deepEqual(told, ["0xB", undefined, 1337]);
  stop();
  assert.equal(listeners.size, 0);
  new Wallet(info("Old", "o"), provider()).watch({ account() {}, chain() {} })(); // one without events is no error
});
