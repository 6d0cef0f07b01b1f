// What went wrong when the model was asked, and whether asking again may help. Pure.

import { Problem, sentence } from "../problem.js";

const SENTENCES = {
  image_too_large: "The model does not take a picture that large. Save it smaller, or crop it to the lesion.",
  http_413: "The server does not take a picture that large. Save it smaller, or crop it to the lesion.",
  body_too_large: "The server does not take a picture that large. Save it smaller, or crop it to the lesion.",
  image_unreadable: "The model cannot read that picture: it is broken, or no JPEG or PNG. Choose another one.",
  artifact_corrupt: "The model's file is damaged, so it gives no answer. An administrator has to look at it.",
  role_missing: "Your account does not hold a role any more that may ask the model. An administrator grants roles.",
};
const OTHER_PICTURE = new Set(["image_too_large", "http_413", "body_too_large", "image_unreadable"]);
const FINAL = new Set([...OTHER_PICTURE, "role_missing", "session_unknown", "artifact_corrupt", "no_model"]);

/** `{code, message, again}`: a sentence for people, and whether to offer the same question once more. */
export function failure(error) {
  const code = error instanceof Problem ? error.code : error instanceof TypeError ? "unreachable" : "unknown";
  return { code, message: SENTENCES[code] ?? sentence(error), again: !FINAL.has(code) };
}
