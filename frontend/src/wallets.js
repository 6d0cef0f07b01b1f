// Wallets in the browser: found by EIP-6963, asked by EIP-1193; refusals become sentences.
//
// Sources: EIP-1193 (provider, error codes), EIP-6963 (discovery), EIP-3085 and EIP-3326 (adding and switching chains),
// EIP-712 (typed data), EIP-191 (personal_sign).

import { Problem } from "./problem.js";

const METAMASK = "io.metamask";
const DISCOVERY_MS = 150;
const ANSWER_MS = 180_000; // a wallet that does not know a chain may never answer
const REMEMBERED = "concilia.wallet";

/** Wallets that announce themselves, MetaMask first; one that only sets `window.ethereum` comes last. */
export async function discover(target = globalThis.window) {
  const found = new Map();
  const announce = (event) => {
    const { info, provider } = event.detail ?? {};
    if (named(info) && provider?.request) found.set(info.rdns, new Wallet(info, provider));
  };
  target.addEventListener("eip6963:announceProvider", announce);
  target.dispatchEvent(new Event("eip6963:requestProvider"));
  await new Promise((resolve) => setTimeout(resolve, DISCOVERY_MS));
  target.removeEventListener("eip6963:announceProvider", announce);
  if (found.size === 0 && target.ethereum?.request) {
    const name = target.ethereum.isMetaMask ? "MetaMask" : "Browser wallet";
    return [new Wallet({ name, rdns: "window.ethereum", icon: "" }, target.ethereum)];
  }
  return [...found.values()].sort(byRank);
}

/** The wallet that was signed in with, if it is still there. */
export async function remembered(storage = globalThis.localStorage) {
  const rdns = storage.getItem(REMEMBERED);
  return rdns ? (await discover()).find((wallet) => wallet.rdns === rdns) : undefined;
}

/** Remember a wallet's name for the next page. */
export function remember(wallet, storage = globalThis.localStorage) {
  storage.setItem(REMEMBERED, wallet.rdns);
}

/** One wallet. Every method throws `Problem` with one of the codes in `refusal`. */
export class Wallet {
  #provider;

  constructor({ name, rdns, icon }, provider) {
    this.name = name;
    this.rdns = rdns;
    this.icon = String(icon).startsWith("data:image/") ? icon : "";
    this.#provider = provider;
  }

  /** The account that the person chooses to show, asking them where they have not yet. */
  async connect() {
    return first(await this.#ask("eth_requestAccounts"), this.name);
  }

  /** The account shown now, undefined where none is. Asks nobody. */
  async account() {
    return (await this.#ask("eth_accounts"))[0];
  }

  /** The chain it is on, as a number (EIP-155). */
  async chain() {
    return Number(await this.#ask("eth_chainId"));
  }

  /** Go to a chain, offering to add it where the wallet does not know it. */
  async switchTo({ chainId, name, rpcUrl }) {
    const id = `0x${chainId.toString(16)}`;
    try {
      await this.#ask("wallet_switchEthereumChain", [{ chainId: id }]);
    } catch (error) {
      if (error.code !== "wallet_unknown_chain") throw error;
      const nativeCurrency = { name: "Ether", symbol: "ETH", decimals: 18 };
      await this.#ask("wallet_addEthereumChain", [{ chainId: id, chainName: name, rpcUrls: [rpcUrl], nativeCurrency }]);
    }
    if ((await this.chain()) !== chainId)
      throw new Problem("The wallet stayed on its network.", { code: "wallet_chain" });
  }

  /** Sign a text (EIP-191). */
  async signMessage(text, address) {
    const bytes = new TextEncoder().encode(text);
    const hex = `0x${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    return this.#ask("personal_sign", [hex, address]);
  }

  /** Sign typed data (EIP-712). The wallet must be on the chain that the domain names. */
  async signTypedData(document, address) {
    return this.#ask("eth_signTypedData_v4", [address, JSON.stringify(document)]);
  }

  /** Be told when the person changes account or network; returns how to stop. */
  watch({ account, chain }) {
    const onAccounts = (accounts) => account(accounts[0]);
    const onChain = (id) => chain(Number(id));
    this.#provider.on?.("accountsChanged", onAccounts);
    this.#provider.on?.("chainChanged", onChain);
    return () => {
      this.#provider.removeListener?.("accountsChanged", onAccounts);
      this.#provider.removeListener?.("chainChanged", onChain);
    };
  }

  async #ask(method, params = []) {
    let timer;
    const late = new Promise((_, reject) => {
      const problem = new Problem(`${this.name} did not answer.`, { code: "wallet_silent" });
      timer = setTimeout(() => reject(problem), ANSWER_MS);
    });
    try {
      return await Promise.race([this.#provider.request({ method, params }), late]);
    } catch (error) {
      throw error instanceof Problem ? error : refusal(error, method, this.name);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** A wallet's error as a sentence for people. */
export function refusal(error, method, name) {
  const code = error?.code ?? error?.data?.originalError?.code;
  if (code === 4001) {
    const what = method.includes("ign") ? "sign" : method.includes("Chain") ? "change the network" : "connect";
    return new Problem(`You declined to ${what} in ${name}. Nothing was changed.`, { code: "wallet_refused" });
  }
  if (code === 4902 || error?.data?.originalError?.code === 4902) {
    return new Problem(`${name} does not know that network.`, { code: "wallet_unknown_chain" });
  }
  if (code === -32002) {
    return new Problem(`${name} is still waiting for your answer to an earlier question. Open it.`, {
      code: "wallet_busy",
    });
  }
  if (code === 4100) return new Problem(`${name} is locked or shows this site no account.`, { code: "wallet_locked" });
  return new Problem(`${name} says: ${error?.message ?? "something went wrong"}`, { code: "wallet_error" });
}

/** Whether an announcement has what EIP-6963 asks for; anything in a page may announce anything. */
const named = (info) => [info?.uuid, info?.rdns, info?.name].every((each) => typeof each === "string" && each !== "");

function byRank(one, other) {
  const rank = (wallet) => (wallet.rdns === METAMASK ? 0 : 1);
  return rank(one) - rank(other) || one.name.localeCompare(other.name);
}

function first(accounts, name) {
  if (!accounts?.length) throw new Problem(`${name} shows this site no account.`, { code: "wallet_locked" });
  return accounts[0];
}
