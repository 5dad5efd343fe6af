// Asks the server. Every address is relative, so that the page also works below a prefix of a proxy.

const PATIENCE_MS = 60_000;

/** Says why there is no answer. `kind` is "away", "busy", "token", "refused" or "broken". */
export class NoAnswer extends Error {
  constructor(kind, message, { status = 0, reason = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, reason, retryAfter });
  }
}

let token = ""; // in memory only

export function setToken(value) {
  token = value;
}

function secondsOf(header) {
  if (header === null) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

async function errorOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy in between answers with a page of its own: the status says enough.
  }
  const { status } = response;
  const said = typeof error.message === "string" ? error.message : "";
  const facts = { status, reason: String(error.reason ?? ""), retryAfter: secondsOf(response.headers.get("Retry-After")) };
  if (status === 401) return new NoAnswer("token", said, facts);
  if (status === 429 || status === 503) return new NoAnswer("busy", said, facts);
  if (status >= 500) return new NoAnswer("broken", said, facts);
  return new NoAnswer("refused", said, facts);
}

async function ask(path, read, { signal, ...options } = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const stop = new AbortController();
  const quit = () => stop.abort();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    quit();
  }, PATIENCE_MS);
  signal?.addEventListener("abort", quit);
  let response;
  try {
    response = await fetch(path, {
      ...options, headers, cache: "no-store", credentials: "same-origin", redirect: "error", signal: stop.signal,
    });
    if (response.ok) return await read(response);
  } catch (error) {
    if (signal?.aborted) throw error;
    if (error instanceof SyntaxError) throw new NoAnswer("broken", "The answer is not JSON.");
    throw new NoAnswer("away", late ? "It did not answer within a minute." : "");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", quit);
  }
  throw await errorOf(response);
}

const asJson = (response) => response.json();

/** Returns what the server serves: `models` and `limits`. */
export const models = () => ask("v1/models", asJson);

/** Returns the names of the examples. */
export const examples = async () => (await ask("v1/examples", asJson)).examples ?? [];

/** Returns an example as a file. */
export async function example(name) {
  const blob = await ask(`v1/examples/${encodeURIComponent(name)}`, (response) => response.blob());
  return new File([blob], name, { type: blob.type });
}

/**
 * Sends one image as it is.
 *
 * @param {File} file
 * @param {Object} options of the address; null and undefined are left out
 * @returns {{answer: Object, roundTrip: number}} the server's JSON, and milliseconds from sending to having read it
 */
export async function classify(file, options, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && value !== undefined) query.set(name, String(value));
  }
  const body = new FormData();
  body.append("image", file, file.name || "image");
  const started = performance.now();
  const answer = await ask(`v1/classify?${query}`, asJson, {
    method: "POST", body, signal, headers: { "X-Deadline-Ms": String(PATIENCE_MS) },
  });
  return { answer, roundTrip: performance.now() - started };
}
