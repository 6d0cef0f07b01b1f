// The wallet's face in a page: providers that ask the test for every answer (see wallet.py), announced by EIP-6963.
// Runs before any script of the page; the test fills in the names.

(() => {
  const names = NAMES;
  const icon =
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Cpath fill='%23e2761b' d='M0 0h8v8H0z'/%3E%3C/svg%3E";
  const listeners = new Map();
  const listening = (event) => listeners.get(event) ?? [];
  const emit = (event, value) => {
    for (const listener of listening(event)) listener(value);
  };
  // Called by the test: something changed in the wallet.
  Object.defineProperty(globalThis, "__walletEmit", { value: emit });

  const provider = (rdns) => ({
    isMetaMask: rdns === "io.metamask",
    async request({ method, params = [] }) {
      const answer = await globalThis.__walletRequest(rdns, method, params);
      for (const [event, value] of answer.events) emit(event, value);
      if (answer.silence) return new Promise(() => {});
      if (answer.error) throw Object.assign(new Error(answer.error.message), answer.error);
      return answer.result;
    },
    on(event, listener) {
      listeners.set(event, [...listening(event), listener]);
    },
    removeListener(event, listener) {
      listeners.set(
        event,
        listening(event).filter((each) => each !== listener),
      );
    },
  });

  const announced = [];
  for (const [at, [name, rdns]] of names.entries()) {
    if (rdns === "window.ethereum") globalThis.ethereum = provider(rdns);
    else {
      const info = { uuid: `00000000-0000-4000-8000-00000000000${at}`, name, rdns, icon };
      announced.push(Object.freeze({ info: Object.freeze(info), provider: provider(rdns) }));
    }
  }
  const announce = () => {
    for (const detail of announced) {
      globalThis.dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail }));
    }
  };
  globalThis.addEventListener("eip6963:requestProvider", announce);
  announce();
})();
