// The five roles: what each may do, what taking it costs, and its identifier on the contract. Pure.
//
// Identifiers are OpenZeppelin AccessControl's: zero for the administrator, else keccak-256 of the name in capitals.

export const ROLES = [
  {
    name: "admin",
    title: "Administrators",
    one: "administrator",
    identifier: `0x${"0".repeat(64)}`,
    may: "Grants and revokes roles, creates jobs, pauses and stops them.",
    loss: "They can no longer grant or revoke roles, nor create, pause or stop jobs.",
  },
  {
    name: "coordinator",
    title: "Coordinators",
    one: "coordinator",
    identifier: "0xd578563424ab02f85ec03c6b1aee04947ebdd4a30db46cba3bcd7f56ef40b199",
    may: "Opens and closes rounds on the ledger: the accounts of the consortium's own services.",
    loss: "The service behind this account can no longer open or close rounds: jobs that run stand still.",
  },
  {
    name: "hospital",
    title: "Hospitals",
    one: "hospital",
    identifier: "0x72d66193ff00a845b4aed5f27e02d9b558ef32be1495a41d00c5c5fb191a0763",
    may: "Takes part in training with its own pictures and its own key.",
    loss: "It gets no further task, and the ledger takes no further update from it. What it contributed stays.",
  },
  {
    name: "clinician",
    title: "Clinicians",
    one: "clinician",
    identifier: "0x74ec59aedccfb5102d11940a4a32c758eeadcc2cfb33b2881de0b927192d18cb",
    may: "Asks the published model about pictures.",
    loss: "They can no longer ask the model about pictures, from the next block on.",
  },
  {
    name: "auditor",
    title: "Auditors",
    one: "auditor",
    identifier: "0xd8994f6d76f930dc5ea8c60e38e6334a87bb8539cc3082ac6828681c33316e3d",
    may: "Reads everything, and recomputes models from the ledger.",
    loss: "They can no longer read updates, nor have models recomputed here.",
  },
];

/** A role by its name. */
export const roleNamed = (name) => ROLES.find((role) => role.name === name);

/** A role by its identifier, with or without 0x; undefined for one that the consortium does not know. */
export const roleIdentified = (identifier) =>
  ROLES.find((role) => role.identifier.slice(2) === String(identifier).replace(/^0x/, "").toLowerCase());

/** "hospital" → "a hospital", "auditor" → "an auditor". */
export const article = (word) => `${/^[aeiou]/.test(word) ? "an" : "a"} ${word}`;
