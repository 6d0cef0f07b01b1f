// What went wrong, as services say it (RFC 9457) or as a person should read it.

/** A refusal or failure with a stable `code`; `message` is a sentence for people, `document` the whole problem. */
export class Problem extends Error {
  constructor(message, { status = 0, code = "unknown", document = {} } = {}) {
    super(message);
    this.name = "Problem";
    this.status = status;
    this.code = code;
    this.document = document;
  }
}

// Codes for which a person needs more, or other words, than a service's own sentence.
const SENTENCES = {
  nonce_unknown: "That sign-in request was used before or is too old. Please sign in again.",
  message_expired: "That sign-in request has expired. Please sign in again.",
  signature_invalid: "The signature is not by the account that asked to sign in. Please sign in again.",
  chain_mismatch: "That sign-in request is for another network. Switch your wallet's network and sign in again.",
  unauthorized: "Your session has ended. Please sign in again.",
  session_unknown: "Your session has ended. Please sign in again.",
  session_ended: "Your session has ended. Please sign in again.",
  role_missing: "Your account does not hold the role that this needs.",
  roles_unavailable: "The ledger does not answer, so it is unknown what you may do. Please try again.",
  sessions_unavailable: "It is unknown at the moment whether your session has ended. Please try again.",
  no_model: "No model is published yet. Once a job has finished, its model answers here.",
  body_too_large: "That is larger than this takes.",
};

/** A problem from an answer of 400 and above. */
export async function problemFrom(response) {
  const document = (await response.json().catch(() => null)) ?? {};
  const code = document.code ?? `http_${response.status}`;
  const sentence = SENTENCES[code] ?? document.detail ?? `The service answered with ${response.status}.`;
  return new Problem(sentence, { status: response.status, code, document });
}

/** One sentence about any error. */
export function sentence(error) {
  if (error instanceof Problem) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached. Check the connection and try again.";
  return error?.message ?? String(error);
}
