// The seven classes of HAM10000 in the order of every vector and matrix, and what each is in a word and in a sentence.
//
// Source: Tschandl et al., "The HAM10000 dataset" (Scientific Data, 2018).

export const CLASSES = [
  {
    code: "akiec",
    name: "Actinic keratosis / Bowen's disease",
    kind: "pre-malignant",
    what: "Early, non-invasive forms of squamous cell carcinoma, mostly from sun damage.",
  },
  {
    code: "bcc",
    name: "Basal cell carcinoma",
    kind: "malignant",
    what: "The most common skin cancer; rarely spreads, destroys locally if untreated.",
  },
  {
    code: "bkl",
    name: "Benign keratosis",
    kind: "benign",
    what: "Seborrhoeic keratosis, solar lentigo and the like: harmless growths, often mistaken for melanoma.",
  },
  {
    code: "df",
    name: "Dermatofibroma",
    kind: "benign",
    what: "A harmless firm nodule, often a reaction to a small injury.",
  },
  {
    code: "mel",
    name: "Melanoma",
    kind: "malignant",
    what: "A malignant tumour of pigment cells: curable when found early, deadly when late.",
  },
  {
    code: "nv",
    name: "Melanocytic nevus",
    kind: "benign",
    what: "A common mole: a harmless growth of pigment cells.",
  },
  {
    code: "vasc",
    name: "Vascular lesion",
    kind: "benign",
    what: "Cherry angioma, angiokeratoma, pyogenic granuloma, haemorrhage: of blood vessels.",
  },
];

export const MELANOMA = 4;
