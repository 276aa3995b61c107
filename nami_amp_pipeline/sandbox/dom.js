// What all parts of the page share. Every text goes into the page as text, never as markup: events are hostile.
export const byId = (id) => document.getElementById(id);
export const numbers = new Intl.NumberFormat("en");
const shown = new Map();
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

// Builds a part of the page anew only when its data changed, so that nothing flickers or loses the focus.
export function showIfChanged(name, data, build) {
  const text = JSON.stringify(data);
  if (shown.get(name) === text) return;
  shown.set(name, text);
  build(data);
}

// Keeps one element per key: those that stay are not touched, so an open one stays open.
export function reconcile(list, rows, keyOf, build) {
  const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
  let place = list.firstElementChild;
  for (const row of rows) {
    const key = keyOf(row);
    let element = known.get(key);
    known.delete(key);
    if (!element) {
      element = build(row);
      element.dataset.key = key;
    }
    if (element === place) place = place.nextElementSibling;
    else list.insertBefore(element, place);
  }
  for (const element of known.values()) element.remove();
}

export async function ask(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error(content.error || `status ${response.status}`);
  return content;
}

export function clockTime(milliseconds) {
  const moment = new Date(milliseconds);
  return Number.isNaN(moment.getTime()) ? String(milliseconds) : moment.toISOString().slice(11, 23);
}

export function dateTime(milliseconds) {
  const moment = new Date(milliseconds);
  return Number.isNaN(moment.getTime()) ? String(milliseconds) : moment.toISOString().replace("T", " ").replace(".000Z", "Z");
}

export function projectName(project) {
  return project.name || `Project ${project.project}`;
}

// A button that says and does one thing.
export function button(text, className, act) {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

export function jsonBlock(value) {
  return make("pre", "", JSON.stringify(value, null, 2));
}

export function propertyChips(properties) {
  const chips = Object.entries(properties).map(([key, value]) =>
    make("span", "chip", make("span", "key", `${key} `), JSON.stringify(value)));
  return chips.length ? make("div", "chips", ...chips) : make("span", "none", "none");
}
