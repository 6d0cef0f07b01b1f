// What a job will cost before it is started: bytes that move and transactions on the ledger. Pure.

/** Bytes of an architecture's weights with seven classes, as float32 safetensors. */
export const MODEL_BYTES = {
  resnet50: 94_400_000,
  resnet18: 44_800_000,
  mobilenet_v2: 9_200_000,
  efficientnet_b0: 16_400_000,
  convnext_tiny: 111_400_000,
  resnet18_gn: 44_800_000,
  mobilenet_v2_gn: 9_000_000,
};

/** Bytes of an adapter by what it holds, as `make bench-adapters` measures them. */
export const ADAPTER_BYTES = {
  resnet50: { norms: 510_000, "lora:4": 1_790_000, "lora:8": 3_060_000, "lora:16": 5_600_000 },
  resnet18: { norms: 110_000, "lora:4": 680_000, "lora:8": 1_260_000, "lora:16": 2_410_000 },
  mobilenet_v2: { norms: 340_000, "lora:4": 640_000, "lora:8": 940_000, "lora:16": 1_530_000 },
  efficientnet_b0: { norms: 400_000, "lora:4": 1_080_000, "lora:8": 1_730_000, "lora:16": 3_000_000 },
  convnext_tiny: { norms: 120_000, "lora:4": 1_260_000, "lora:8": 2_390_000, "lora:16": 4_640_000 },
  resnet18_gn: { norms: 70_000, "lora:4": 650_000, "lora:8": 1_230_000, "lora:16": 2_380_000 },
  mobilenet_v2_gn: { norms: 190_000, "lora:4": 500_000, "lora:8": 800_000, "lora:16": 1_390_000 },
};

/** Bytes of an update by its encoding, of those of the model; rounded up from what was measured. */
export const UPDATE_SHARE = { none: 1, float16: 0.51, "int8+zstd": 0.25, "topk:0.01+zstd": 0.03 };

/**
 * The cost of a job in which every hospital takes part in every round.
 *
 * A hospital downloads each global model once, the initial one included (it is evaluated as round 0 and trained from in
 * round 1), and uploads one update a round. A round opens and closes with a transaction each and has at most one for each
 * update (those that come together share one), or one for all under a Merkle root; publishing takes one more. What an
 * adapter goes over (`trunkBytes`) is downloaded once.
 */
export function estimate({ modelBytes, trunkBytes = 0, hospitals, rounds, recording = "each", encoding = "none" }) {
  const downloads = hospitals * (rounds + 1 + (trunkBytes ? 1 : 0));
  const uploads = hospitals * rounds;
  const updateBytes = Math.ceil(modelBytes * UPDATE_SHARE[encoding]);
  const bytesDown = hospitals * ((rounds + 1) * modelBytes + trunkBytes);
  const bytesUp = uploads * updateBytes;
  return {
    downloads,
    uploads,
    bytesDown,
    bytesUp,
    bytes: bytesDown + bytesUp,
    bytesEach: hospitals ? (bytesDown + bytesUp) / hospitals : 0,
    transactions: rounds * (2 + (recording === "merkle" ? 1 : hospitals)) + 1,
  };
}

/** What a quorum means with so many hospitals online, in one sentence; `short` where the job could not begin. */
export function quorumSentence(quorum, online) {
  const hospitals = online === 1 ? "1 hospital is" : `${online} hospitals are`;
  if (online < quorum) {
    return { short: true, text: `${hospitals} online now: the job waits until ${quorum} are.` };
  }
  const spare = online - quorum;
  const text =
    spare === 0
      ? `${hospitals} online now: all of them are needed, none may drop out of a round.`
      : `${hospitals} online now: a round counts even if ${spare} of them drop${spare === 1 ? "s" : ""} out.`;
  return { short: false, text };
}
