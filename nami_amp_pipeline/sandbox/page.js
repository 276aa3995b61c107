// Shows what the sandbox received, and asks again every two seconds.
import { ask, byId, clockTime, dateTime, jsonBlock, make, numbers, projectName, propertyChips, reconcile, showIfChanged } from "./dom.js";
import { onSteered, showFaults, showOptions, showScenes, steer } from "./controls.js";
import { searchAgain } from "./search.js";

const REFRESH_MS = 2000;
let paused = false;
let timer = 0;

function showTiles({ summary, audit, users }) {
  const tiles = [
    ["Events stored", summary.events],
    ["Users", users.total],
    ["Projects", summary.projects.length],
    ["Requests", audit.requests],
    ["Repeats dropped", audit.duplicates],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", numbers.format(value)))),
  );
}

function bar(length, share) {
  const image = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  image.setAttribute("viewBox", "0 0 100 8");
  image.setAttribute("preserveAspectRatio", "none");
  const filled = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  filled.setAttribute("width", String(Math.max(length * 100, 1)));
  filled.setAttribute("height", "8");
  image.append(filled);
  const frame = make("div", "bar", image);
  frame.setAttribute("role", "img");
  frame.setAttribute("aria-label", `${Math.round(share * 100)} %`);
  return frame;
}

function showTotals(summary) {
  const rows = [];
  const types = new Set();
  const byName = (left, right) => projectName(left).localeCompare(projectName(right), "en", { numeric: true });
  for (const project of summary.projects.toSorted(byName)) {
    const entries = Object.entries(project.event_types);
    if (!entries.length) entries.push(["–", 0]);
    const most = Math.max(...Object.values(project.event_types));
    entries.forEach(([type, count], place) => {
      if (count) types.add(type);
      const row = make("tr", "");
      if (place === 0) {
        const head = make("th", "", projectName(project), make("span", "sub", `key ${project.api_key}`),
          make("span", "sub", `${numbers.format(project.events)} events`));
        head.scope = "rowgroup";
        head.rowSpan = entries.length;
        row.append(head);
      }
      row.append(make("td", "mono wrap", type), make("td", "number", numbers.format(count)),
        make("td", "", count ? bar(count / most, count / project.events) : ""));
      rows.push(row);
    });
  }
  byId("totals").replaceChildren(...rows);
  byId("no-totals").hidden = rows.length > 0;
  const filter = byId("type-filter");
  const chosen = filter.value;
  if (chosen) types.add(chosen);
  filter.replaceChildren(new Option("all", ""), ...[...types].sort().map((type) => new Option(type, type)));
  filter.value = chosen;
}

const CHECKS = [
  ["accepted_more_than_once", "Accepted more than once", true],
  ["order_violations", "A user's events out of order", true],
  ["concurrent_same_user", "Same user in two requests at once", true],
  ["changed_repeats", "Repeats with different content", true],
  ["duplicates", "Repeats recognised and dropped", false],
  ["lost", "Lost after a 200", false],
  ["properties_cut", "Properties cut", false],
  ["stored_twice", "Stored twice", false],
];

function showAudit(audit) {
  const open = new Set([...byId("checks").querySelectorAll("details[open]")].map((element) => element.dataset.check));
  byId("checks").replaceChildren(
    ...CHECKS.map(([name, label, mustBeZero]) => {
      const count = audit[name];
      const state = mustBeZero ? (count ? "fail" : "pass") : "note";
      const mark = make("span", "mark", { fail: "✕", pass: "✓", note: "·" }[state]);
      mark.setAttribute("aria-hidden", "true");
      const result = make("strong", "", numbers.format(count));
      if (mustBeZero) result.append(make("span", "hidden", count ? " – not good" : " – good"));
      const item = make("li", state, mark, make("span", "", label), result);
      const examples = audit.examples[name];
      if (examples) {
        const details = make("details", "", make("summary", "", "Examples"),
          make("pre", "", examples.map((example) => JSON.stringify(example)).join("\n")));
        details.dataset.check = name;
        details.open = open.has(name);
        item.append(details);
      }
      return item;
    }),
  );
  const answers = Object.entries(audit.requests_by_status).map(([status, count]) => {
    const tone = status === "200" ? "good" : /^[345]/.test(status) ? "warn" : "bad";
    return make("span", `chip ${tone}`, `${status} × ${numbers.format(count)}`);
  });
  byId("answers").replaceChildren(...(answers.length ? answers : [make("span", "none", "None yet.")]));
}

function eventRow(row) {
  const event = row.event;
  const summary = make("summary", "",
    make("span", "time", clockTime(row.received_at * 1000)),
    make("span", "type", event.event_type),
    make("span", "", event.user_id ?? event.device_id ?? ""),
    make("span", "mono", event.insert_id ?? "–"),
    make("span", "", projectName(row)));
  const details = make("details", "", summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(jsonBlock(event));
  });
  return make("li", "", details);
}

function userRow(user) {
  const name = user.user_id ?? `Device ${user.device_ids[0] ?? ""}`;
  const head = make("th", "wrap", name, make("span", "sub", `${projectName(user)} · key ${user.api_key}`));
  head.scope = "row";
  if (user.user_id === null) head.append(make("span", "sub", "no user yet"));
  if (user.updates_dropped) head.append(make("span", "sub", `${numbers.format(user.updates_dropped)} updates dropped`));
  if (user.identifies) head.append(make("span", "sub", `${numbers.format(user.identifies)} identifies, which are no events`));
  const seen = user.last_time === null ? "no event yet" : dateTime(user.last_time);
  return make("tr", "", head, make("td", "number", numbers.format(user.events)), make("td", "mono", seen),
    make("td", "", propertyChips(user.user_properties)));
}

function showEmpty(isEmpty) {
  byId("empty").hidden = !isEmpty;
  const endpoint = `${location.origin}/2/httpapi`;
  byId("endpoint").textContent = endpoint;
  byId("example").textContent =
    `curl ${endpoint} -H 'Content-Type: application/json' -d '\n` +
    `  {"api_key": "my-api-key", "events": [\n` +
    `    {"event_type": "hello", "user_id": "user-1", "insert_id": "1", "user_properties": {"plan": "pro"}}]}'`;
}

async function refresh() {
  const type = byId("type-filter").value;
  const user = byId("user-search").value.trim();
  const eventsPath = `/sandbox/events?limit=100${type ? `&event_type=${encodeURIComponent(type)}` : ""}`;
  const usersPath = `/sandbox/users?limit=50${user ? `&user_id=${encodeURIComponent(user)}` : ""}`;
  const status = byId("status");
  try {
    const [summary, audit, faults, { scenes }, options, events, users] = await Promise.all(
      ["/sandbox/summary", "/sandbox/audit", "/sandbox/faults", "/sandbox/scenes", "/sandbox/options", eventsPath,
        usersPath].map((path) => ask(path)));
    showIfChanged("tiles", { summary, audit, users: { total: users.total } }, showTiles);
    showIfChanged("totals", summary, showTotals);
    showIfChanged("audit", audit, showAudit);
    showIfChanged("faults", faults, showFaults);
    showIfChanged("scenes", scenes, showScenes);
    showIfChanged("options", options, showOptions);
    showIfChanged("empty", audit.requests === 0 && summary.events === 0, showEmpty);
    reconcile(byId("events"), events.events, (row) => `${row.project}/${row.number}/${row.received_at}`, eventRow);
    byId("no-events").hidden = events.events.length > 0;
    reconcile(byId("users"), users.users, (row) => JSON.stringify(row), userRow);
    byId("no-users").hidden = users.users.length > 0;
    byId("users-count").textContent =
      users.matching > users.users.length ? `newest ${users.users.length} of ${numbers.format(users.matching)}` : "";
    await searchAgain();
    status.textContent = paused ? "Paused" : "Live, every 2 s";
    status.classList.remove("lost");
  } catch (error) {
    status.textContent = "Not reachable, trying again…";
    status.classList.add("lost");
  }
}

async function loop() {
  clearTimeout(timer);
  if (!paused && !document.hidden) await refresh();
  clearTimeout(timer);
  timer = setTimeout(loop, REFRESH_MS);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("status").textContent = paused ? "Paused" : "Loading…";
  loop();
});
byId("clear").addEventListener("click", () => {
  if (confirm("Forget all events, users and counts of this sandbox?")) steer("/sandbox/data", "DELETE");
});
onSteered(refresh);
byId("type-filter").addEventListener("change", refresh);
byId("user-search").addEventListener("input", refresh);
document.addEventListener("visibilitychange", () => !document.hidden && loop());
loop();
