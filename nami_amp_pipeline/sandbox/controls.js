// Makes Amplitude fail: scenes, fault rules, and when exports are ready.
import { ask, button, byId, make, numbers } from "./dom.js";

const LOSSES = new Set(["lost_after_200", "cut_property", "stored_twice"]);
let steered = async () => {};

// What is done after each change.
export function onSteered(act) {
  steered = act;
}

export async function steer(path, method, content, errorId = "fault-error") {
  const error = byId(errorId);
  let answer = null;
  try {
    answer = await ask(path, {
      method,
      ...(content === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) }),
    });
    error.hidden = true;
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
  }
  await steered();
  return answer;
}

export function showFaults({ rules, kinds }) {
  const kindList = byId("fault-kind");
  if (!kindList.options.length) {
    kindList.append(...kinds.map((kind) => new Option(kind.replaceAll("_", " "), kind)));
    showFields();
  }
  const items = rules.map((rule) => {
    const { id, kind, enabled, fired, scene, ...more } = rule;
    const input = make("input", "");
    input.type = "checkbox";
    input.checked = enabled;
    input.setAttribute("role", "switch");
    input.addEventListener("change", () => steer(`/sandbox/faults?id=${id}`, "PATCH", { enabled: input.checked }));
    const toggle = make("label", "switch", input, make("span", "hidden", `Fault ${kind}`));
    const details = Object.entries(more).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
    if (scene) details.unshift(`of the scene ${scene}`);
    const what = make("span", "what", make("strong", enabled ? "" : "off", kind),
      make("span", "sub", [...details, `happened ${numbers.format(fired)}×`].join(" · ")));
    const remove = button("Remove", "", () => steer(`/sandbox/faults?id=${id}`, "DELETE"));
    remove.setAttribute("aria-label", `Remove fault ${kind}`);
    return make("li", "", toggle, what, remove);
  });
  byId("rules").replaceChildren(...(items.length ? items : [make("li", "none", "None. Every valid request is answered 200.")]));
}

export function showScenes(scenes) {
  const list = byId("scenes");
  const typed = new Map([...list.querySelectorAll("input")].map((input) => [input.dataset.scene, input.value]));
  const focused = document.activeElement?.id;
  byId("scenes-on").textContent = scenes.filter((scene) => scene.on).map((scene) => scene.title).join(", ") || "none";
  list.replaceChildren(...scenes.map((scene) => {
    const value = make("input", "");
    const what = make("div", "what", make("strong", "", scene.title), make("span", "sub", scene.means));
    if (scene.on) what.append(make("span", "sub on", `On; happened ${numbers.format(scene.happened)}×`));
    const act = button(scene.on ? "Stop" : "Start", scene.on ? "stop" : "", () => (scene.on
      ? steer(`/sandbox/scenes?scene=${encodeURIComponent(scene.name)}`, "DELETE", undefined, "scene-error")
      : steer("/sandbox/scenes", "POST", { scene: scene.name, value: scene.value ? value.value : "" }, "scene-error")));
    act.id = `scene-${scene.name}`;
    act.setAttribute("aria-label", `${scene.on ? "Stop" : "Start"}: ${scene.title}`);
    act.setAttribute("aria-pressed", String(scene.on));
    const item = make("li", scene.on ? "on" : "", what);
    if (scene.value && !scene.on) {
      value.id = `value-${scene.name}`;
      value.dataset.scene = scene.name;
      value.placeholder = scene.default || "any";
      value.title = scene.value;
      value.value = typed.get(scene.name) ?? "";
      value.setAttribute("aria-label", `${scene.title}: ${scene.value}`);
      item.append(value);
    }
    item.append(act);
    return item;
  }));
  if (focused) byId(focused)?.focus({ preventScroll: true });
}

export function showOptions(options) {
  const delay = byId("export-delay");
  if (document.activeElement !== delay) delay.value = options.export_delay_hours;
}

function showFields() {
  const kind = byId("fault-kind").value;
  for (const field of document.querySelectorAll("#fault-form [data-for]")) {
    field.hidden = field.dataset.for === "losses" ? !LOSSES.has(kind) : field.dataset.for !== kind;
  }
}

function ruleOfForm() {
  const text = (id) => byId(id).value.trim();
  const rule = { kind: text("fault-kind"), probability: Number(text("fault-probability") || 1) };
  if (text("fault-times")) rule.times = Number(text("fault-times"));
  if (text("fault-user")) rule.user_id = text("fault-user");
  if (text("fault-type")) rule.event_type = text("fault-type");
  if (rule.kind === "cut_property") {
    rule.property_name = text("fault-property");
    rule.characters = text("fault-characters") ? Number(text("fault-characters")) : null;
  }
  return rule;
}

byId("fault-kind").addEventListener("change", showFields);
byId("fault-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  steer("/sandbox/faults", "POST", [ruleOfForm()]);
});
byId("fault-held").addEventListener("click", async () => {
  const answer = await steer("/sandbox/held", "POST", ruleOfForm());
  byId("fault-done").textContent = answer ? `Happened to ${numbers.format(answer.happened)} stored events.` : "";
});
byId("scenes-stop").addEventListener("click", () => steer("/sandbox/scenes", "DELETE", undefined, "scene-error"));
byId("export-delay").addEventListener("change", () =>
  steer("/sandbox/options", "PATCH", { export_delay_hours: Number(byId("export-delay").value) }, "scene-error"));
