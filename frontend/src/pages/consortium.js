// Consortium: who asks for a role, who holds which, and who decided it. Everybody with a role looks; administrators act.

import { applications } from "../consortium/applications.js";
import { openChange } from "../consortium/change-dialog.js";
import { grantForm } from "../consortium/grant-form.js";
import { history } from "../consortium/history.js";
import { members } from "../consortium/members.js";
import { ROLES } from "../consortium/roles.js";
import { html, nothing, render } from "../html.js";
import { api, page, session } from "../page.js";
import { sentence } from "../problem.js";
import { sitesOf } from "../sites.js";

const REFRESH_MS = 15_000;

page({ what: "the consortium", start });

function start(view) {
  const state = { loaded: null, problem: "", said: "", wholeHistory: false };
  let timer;
  let ended = false;

  const show = (change = {}) => {
    if (ended) return;
    Object.assign(state, change);
    render(template(state, acts), view);
  };
  const load = async () => {
    clearTimeout(timer);
    try {
      show({ loaded: await everything(), problem: "" });
    } catch (error) {
      show({ problem: sentence(error) });
    }
    clearTimeout(timer);
    if (!ended) timer = setTimeout(load, REFRESH_MS);
  };
  const acts = {
    load,
    change: (change) =>
      openChange(change, {
        api,
        session,
        holders: state.loaded.members[change.role],
        async done() {
          if (change.account.toLowerCase() === session.current?.address.toLowerCase()) await session.refresh();
          await load();
        },
      }),
    async dismiss({ address, name }) {
      try {
        await api.json("auth", `/v1/applications/${address}`, { method: "DELETE" });
        show({ said: `The application of ${name} was dismissed.` });
        await load();
      } catch (error) {
        show({ problem: sentence(error) });
      }
    },
    showHistory: () => show({ wholeHistory: true }),
  };

  const rolesChanged = () => load();
  session.addEventListener("change", rolesChanged);
  show();
  load();
  return () => {
    ended = true;
    clearTimeout(timer);
    session.removeEventListener("change", rolesChanged);
  };
}

async function everything() {
  const admin = session.holds("admin");
  const [records, nodes, applied, ...lists] = await Promise.all([
    api.json("chain", "/v1/role-records?limit=1000"),
    api.json("aggregator", "/v1/nodes").catch(() => null), // names and pictures; roles are known without them
    admin ? api.json("auth", "/v1/applications") : [],
    ...ROLES.map((role) => api.json("chain", `/v1/members?role=${role.name}`)),
  ]);
  const held = Object.fromEntries(ROLES.map((role, at) => [role.name, lists[at]]));
  const holds = ({ address, role }) => held[role].some((member) => member.address === address);
  return {
    records,
    nodes,
    sites: sitesOf(nodes ?? []),
    applications: applied.filter((application) => !holds(application)),
    members: held,
  };
}

function template({ loaded, problem, said, wholeHistory }, acts) {
  const again = html`<p class="problem">${problem} <button class="small" @click=${acts.load}>Try again</button></p>`;
  if (!loaded) return problem ? again : html`<p class="busy waiting">Asking the ledger…</p>`;
  const admin = session.holds("admin");
  return html`${problem ? again : nothing}
    <div role="status">${said ? html`<p class="success">${said}</p>` : nothing}</div>
    ${admin ? applications(loaded, acts) : nothing}
    ${members(loaded, { acts: admin ? acts : null, self: session.current?.address })}
    ${admin ? grantForm(api, acts) : nothing}
    ${history(loaded, { whole: wholeHistory, showWhole: acts.showHistory })}`;
}
