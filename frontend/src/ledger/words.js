// What the ledger recorded, in words. Pure: names come from `who(address)` and `model(digest)`.

import { article, roleIdentified } from "../consortium/roles.js";
import { brief, count, moment } from "../format.js";
import { reason } from "../reasons.js";

/** The kinds of event, in the order in which they happen, as filters name them. */
export const KINDS = [
  ["RoundOpened", "round opened"],
  ["UpdateRecorded", "update submitted"],
  ["UpdateRejected", "update left out"],
  ["MerkleRoundOpened", "round takes one commitment"],
  ["UpdatesCommitted", "updates committed"],
  ["LeafRejected", "committed update left out"],
  ["UpdateProven", "committed update proven"],
  ["UpdateDisputed", "committed update disputed"],
  ["RoundClosed", "round closed"],
  ["RoundAborted", "round given up"],
  ["ModelPublished", "model published"],
  ["RoleGranted", "role granted"],
  ["RoleRevoked", "role revoked"],
  ["HospitalNumbered", "hospital enrolled"],
  ["Paused", "ledger paused"],
  ["Unpaused", "ledger resumed"],
];

/** A kind in words. */
export const kind = (name) => KINDS.find(([known]) => known === name)?.[1] ?? name;

/** One sentence about an event, without a full stop. */
export function sentenceOf({ name, round, arguments: given }, who) {
  const account = given.hospital ?? given.account;
  const role = given.role === undefined ? "" : (roleIdentified(given.role)?.one ?? `role ${brief(given.role)}`);
  switch (name) {
    case "RoundOpened":
      return `Round ${round} was opened, until ${moment(given.deadline * 1000)}`;
    case "UpdateRecorded":
      return `${who(account)} submitted an update in round ${round}, from ${images(given.samples)}`;
    case "UpdateRejected":
      return `The update of ${who(account)} in round ${round} was left out: ${reason(given.reason)}`;
    case "MerkleRoundOpened":
      return `Round ${round} takes its updates as one commitment`;
    case "UpdatesCommitted":
      return `${updates(given.count)} of round ${round} were committed under one root`;
    case "LeafRejected":
      return `Committed update ${given.index} of round ${round} was left out`;
    case "UpdateProven":
      return `The committed update of ${who(account)} in round ${round} was proven`;
    case "UpdateDisputed":
      return `A committed update in the name of ${who(account)} in round ${round} was shown to be false`;
    case "RoundClosed":
      return `Round ${round} was closed: ${updates(given.count)} folded into a new model`;
    case "RoundAborted":
      return `Round ${round} was given up`;
    case "ModelPublished":
      return `The model of round ${round} was published`;
    case "RoleGranted":
      return `${who(account)} was made ${role.startsWith("role") ? role : article(role)}`;
    case "RoleRevoked":
      return `${who(account)} is no ${role} any more`;
    case "HospitalNumbered":
      return `${who(account)} was enrolled as hospital number ${given.number}`;
    case "Paused":
      return `${who(account)} paused the ledger`;
    case "Unpaused":
      return `${who(account)} resumed the ledger`;
    default:
      return spaced(name);
  }
}

/** Where more about an event is to be seen: `{href, label}`, or null. */
export function more({ name, job, round, account }) {
  if (!job) return null;
  if (name === "UpdateRecorded" || name === "UpdateRejected") {
    return { href: updateHref(job, round, account), label: "Update" };
  }
  return { href: lineageHref(job), label: "Lineage" };
}

/** The page of one update. */
export const updateHref = (job, round, hospital) => `/update?job=${job}&round=${round}&hospital=${hospital}`;

/** The page of a job's lineage. */
export const lineageHref = (job) => `/lineage?job=${job}`;

/** 1 → "1 update". */
export const updates = (number) => `${count(number)} ${number === 1 ? "update" : "updates"}`;

/** 1 → "1 image". */
export const images = (number) => `${count(number)} ${number === 1 ? "image" : "images"}`;

/** 1 → "1 round". */
export const rounds = (number) => `${count(number)} ${number === 1 ? "round" : "rounds"}`;

const spaced = (name) => name.replace(/(?<=[a-z])(?=[A-Z])/g, " ");
