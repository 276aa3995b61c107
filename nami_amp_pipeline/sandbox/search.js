// Finds an event, a user or a device by its id, also from the address: /?q=ID. Without this, the server paints the same:
// found_page.py.
import { ask, byId, dateTime, jsonBlock, make, numbers, projectName, propertyChips, showIfChanged } from "./dom.js";

const LIMIT = 20;
let wanted = new URLSearchParams(location.search).get("q") ?? "";

function damageText(damage) {
  const parts = [];
  if (damage.lost) parts.push("lost after its 200");
  if (damage.copies > 1) parts.push(`stored ${damage.copies} times`);
  for (const [name, characters] of Object.entries(damage.cuts)) {
    parts.push(characters === null ? `${name} not stored` : `${name} cut after ${characters} characters`);
  }
  return parts.join(", ");
}

function foundEvent(row) {
  const summary = make("summary", "", make("span", "type", row.event.event_type), " ",
    make("span", "mono", row.event.insert_id ?? "without insert_id"),
    make("span", "sub", `${projectName(row)} · received ${dateTime(row.received_at * 1000)} · ${row.path}`));
  if (row.damage) summary.append(make("span", "chip bad", damageText(row.damage)));
  const details = make("details", "", summary, jsonBlock(row.event));
  return make("li", "", details);
}

function foundUser(user) {
  return make("li", "", make("strong", "wrap", user.user_id ?? `Device ${user.device_ids[0] ?? ""}`),
    make("span", "sub", `${projectName(user)} · ${numbers.format(user.events)} ${user.events === 1 ? "event" : "events"}${identifies(user)} · devices: ${user.device_ids.join(", ") || "none"}`),
    propertyChips(user.user_properties));
}

function identifies(user) {
  return user.identifies ? ` · ${numbers.format(user.identifies)} identifies, which are no events` : "";
}

function foundRequest(request) {
  const tone = request.status === "200" ? "good" : /^[345]/.test(request.status) ? "warn" : "bad";
  const places = request.indexes.length === 1 ? `event ${request.indexes[0] + 1} of ${numbers.format(request.events)}`
    : `${request.indexes.length} of ${numbers.format(request.events)} events`;
  const summary = make("summary", "", make("span", `chip ${tone}`, request.status), " ",
    `${dateTime(request.received_at * 1000)} · ${request.path} · ${places}`);
  if (request.named_in.length) summary.append(make("span", "sub", `named in ${request.named_in.join(", ")}`));
  return make("li", "", make("details", "", summary, make("pre", "", request.answer || "(no body)")));
}

function part(title, rows, build, none) {
  return make("section", "", make("h3", "", `${title} (${rows.length === LIMIT ? `newest ${LIMIT}` : rows.length})`),
    rows.length ? make("ul", "found", ...rows.map(build)) : make("p", "none", none));
}

function show({ events, users, requests }) {
  byId("found").replaceChildren(
    part("Events", events, foundEvent, "No stored event has this id."),
    part("Users, as Amplitude would hold them now", users, foundUser, "No user or device has this id."),
    part("Requests that carried it", requests, foundRequest, "None of the newest requests carried it."),
  );
}

export async function searchAgain() {
  byId("found").hidden = !wanted;
  byId("search-clear").hidden = !wanted;
  if (!wanted) return;
  showIfChanged("found", await ask(`/sandbox/search?limit=${LIMIT}&q=${encodeURIComponent(wanted)}`), show);
}

function look(text) {
  wanted = text.trim();
  byId("search-id").value = wanted;
  history.replaceState(null, "", wanted ? `/?q=${encodeURIComponent(wanted)}` : "/");
  return searchAgain();
}

byId("search-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  look(byId("search-id").value);
});
byId("search-clear").addEventListener("click", (clicked) => {
  clicked.preventDefault();
  look("");
});
byId("search-id").value = wanted;
