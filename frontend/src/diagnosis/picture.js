// Which files can be asked about, decided before anything is sent. Pure.
//
// Sources: JPEG (ITU-T T.81, B.1.1.3), PNG (W3C, section 5.2), DICOM part 10 (section 7.1).

export const MAX_BYTES = 10_000_000; // the model service's own limits
export const MAX_PIXELS = 40_000_000;
export const ACCEPT = "image/jpeg,image/png";
export const HEAD_BYTES = 132; // as far as DICOM's mark, the farthest of them

const MARKS = [
  ["jpeg", 0, [0xff, 0xd8, 0xff]],
  ["png", 0, [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ["dicom", 128, [0x44, 0x49, 0x43, 0x4d]],
  ["heic", 4, [0x66, 0x74, 0x79, 0x70]],
];

/** What a file is by its first bytes, whatever its name says: "jpeg", "png", "dicom", "heic" or undefined. */
export const kindOf = (head) =>
  MARKS.find(([, at, mark]) => mark.every((byte, index) => head[at + index] === byte))?.[0];

/** Why a file of `size` bytes that begins with `head` cannot be asked about, as a sentence; null where it can. */
export function objection({ size, head }) {
  if (size === 0) return "That file is empty. Choose another one.";
  const kind = kindOf(head);
  if (kind === "dicom") return "DICOM files cannot be read here. Export the picture as JPEG or PNG, and choose that.";
  if (kind === "heic") return "HEIC pictures cannot be read here. Save the picture as JPEG or PNG, and choose that.";
  if (kind === undefined) return "That file is no JPEG or PNG picture. Choose one that is.";
  if (size > MAX_BYTES) {
    const megabytes = (Math.ceil(size / 100_000) / 10).toFixed(1);
    return `That picture has ${megabytes} MB; 10 MB is the most that can be sent. Save it smaller, or crop it to the lesion.`;
  }
  return null;
}

/** Why a picture of these pixels cannot be asked about; null where it can. */
export function tooManyPixels(width, height) {
  if (width * height <= MAX_PIXELS) return null;
  const mega = (Math.ceil((width * height) / 100_000) / 10).toFixed(1);
  return `That picture has ${mega} megapixels; 40 is the most that can be read. Save it smaller, or crop it to the lesion.`;
}
