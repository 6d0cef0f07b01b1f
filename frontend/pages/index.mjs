// Every page: its file here, its script under src/pages, and where it stands in the navigation.

export const NAVIGATION = [
  { page: "index", href: "/", label: "Home" },
  { page: "jobs", href: "/jobs", label: "Jobs" },
  { page: "diagnosis", href: "/diagnosis", label: "Diagnosis" },
  { page: "ledger", href: "/ledger", label: "Ledger" },
  { page: "consortium", href: "/consortium", label: "Consortium" },
];

export const PAGES = [
  {
    name: "index",
    title: "Concilia",
    description: "Hospitals train one skin-lesion classifier together; every contribution is signed and on a ledger.",
  },
  { name: "jobs", title: "Jobs", description: "Training jobs of the consortium." },
  { name: "new-job", section: "jobs", title: "New job", description: "Create a training job." },
  { name: "job", section: "jobs", title: "Job", description: "Watch a training job live." },
  { name: "diagnosis", title: "Diagnosis", description: "Ask the published model about a dermoscopic picture." },
  { name: "ledger", title: "Ledger", description: "Every event the contract recorded." },
  { name: "lineage", section: "ledger", title: "Lineage", description: "From initial weights to published model." },
  { name: "update", section: "ledger", title: "Update", description: "One hospital's signed update." },
  { name: "consortium", title: "Consortium", description: "Who may do what, and who decided it." },
  { name: "404", title: "Not found", description: "There is no such page." },
];
