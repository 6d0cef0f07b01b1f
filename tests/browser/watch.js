// What the tests watch in every page, from before its first script: violations of the content security policy, what is
// still being asked, the largest contentful paint and the layout shifts.
//
// Source of the layout shift score: https://web.dev/articles/cls (session windows of at most 5 s, with gaps below 1 s).

(() => {
  addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI, sourceFile }) => {
    globalThis.__sawViolation(`${effectiveDirective} ${blockedURI} ${sourceFile ?? ""}`.trim());
  });

  let asking = 0;
  const ask = globalThis.fetch;
  globalThis.fetch = async (...request) => {
    asking += 1;
    try {
      return await ask(...request);
    } finally {
      asking -= 1;
    }
  };

  const WAITING = "[aria-busy=true], .busy, .skeleton";
  const QUIET_MS = 120; // longer than what a page does between an answer and its next question

  /** Resolves once nothing was being asked, and nothing said that it waits, for a moment. */
  const settled = () =>
    new Promise((resolve) => {
      let since = performance.now();
      const look = () => {
        const now = performance.now();
        const loading = document.readyState !== "complete" || asking > 0;
        if (loading || document.querySelector(WAITING)) since = now;
        if (now - since > QUIET_MS) resolve(true);
        else requestAnimationFrame(look);
      };
      look();
    });

  const vitals = { lcp: null, cls: 0 };
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) vitals.lcp = entry.startTime;
  }).observe({ type: "largest-contentful-paint", buffered: true });

  let session = { score: 0, began: 0, last: Number.NEGATIVE_INFINITY };
  new PerformanceObserver((list) => {
    for (const { hadRecentInput, startTime, value } of list.getEntries()) {
      if (hadRecentInput) continue;
      const goesOn = startTime - session.last < 1000 && startTime - session.began < 5000;
      session = goesOn
        ? { ...session, score: session.score + value, last: startTime }
        : { score: value, began: startTime, last: startTime };
      vitals.cls = Math.max(vitals.cls, session.score);
    }
  }).observe({ type: "layout-shift", buffered: true });

  Object.defineProperty(globalThis, "__watch", { value: { settled, vitals } });
})();
