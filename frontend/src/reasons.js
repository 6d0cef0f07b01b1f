// Why a recorded update was left out: the contract's reasons, in its order from 1, by name as services say them. Pure.
//
// `during` goes with a hospital while it is watched, `after` with what is recorded, `meaning` explains it.

const REASONS = [
  {
    name: "artifact_missing",
    during: "its file never arrived",
    after: "its file is missing",
    meaning: "The file with that hash was never stored, so nobody can check or use it.",
  },
  {
    name: "digest_mismatch",
    during: "the file is not the one that was signed",
    after: "its file does not match",
    meaning: "The stored file has another hash than the hospital signed.",
  },
  {
    name: "malformed_file",
    during: "the file cannot be read",
    after: "its file is malformed",
    meaning: "The file is no valid safetensors file.",
  },
  {
    name: "name_mismatch",
    during: "the file has other tensors than the model",
    after: "other layers",
    meaning: "The file names other layers than the model has.",
  },
  {
    name: "shape_mismatch",
    during: "a tensor has another shape than the model's",
    after: "other shapes",
    meaning: "A layer has another shape than in the model.",
  },
  {
    name: "dtype_mismatch",
    during: "a tensor has another number type than the model's",
    after: "another number format",
    meaning: "A layer is stored in another number format than in the model.",
  },
  {
    name: "non_finite",
    during: "it contains numbers that are none (NaN or infinity)",
    after: "values that are no numbers",
    meaning: "The weights contain infinities or values that are no numbers.",
  },
  {
    name: "norm_too_large",
    during: "it is too far from the model it started from",
    after: "too far from the base",
    meaning: "The weights moved further from the base model than is plausible.",
  },
  {
    name: "sample_count",
    during: "it claims more pictures than the hospital registered",
    after: "an implausible image count",
    meaning: "It claims more training images than the hospital registered.",
  },
];

const found = (reason) =>
  /^\d+$/.test(reason)
    ? REASONS[Number(reason) - 1]
    : REASONS.find(({ name }) => name === String(reason).toLowerCase());

/** Why a hospital's update is left out, from the reason's number or name. */
export const reasonWords = (reason) => found(reason)?.during ?? `reason ${reason}`;

/** Why a recorded update was left out, in a few words. */
export const reason = (number) => found(number)?.after ?? `reason ${number}`;

/** What such a reason means, in a sentence. */
export const reasonMeaning = (number) =>
  found(number)?.meaning ?? "The ledger gives a reason that this page does not know.";
