// Makes pages follow what happens, and forms quicker to fill in. Without it every page and every form works all the same.
"use strict";

const EVERY_MS = 10_000;

// What is inside #live, and the line about the whole app, are read again every ten seconds while somebody looks.
function follow() {
  const live = document.getElementById("live");
  const freshness = document.getElementById("freshness");
  if (!live || !freshness || !window.htmx) return;
  let last = new Date();
  const clock = (at) => at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const say = (text, isLost) => {
    freshness.hidden = false;
    freshness.classList.toggle("lost", isLost);
    if (isLost) freshness.setAttribute("role", "status");
    else freshness.removeAttribute("role");
    if (freshness.textContent !== text) freshness.textContent = text;
  };
  const lost = () => say(`Cannot reach the pipeline since ${clock(last)}; the numbers are from then.`, true);
  say(`Updated ${clock(last)}`, false);
  document.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail;
    if (ctx.request.method !== "GET") return;
    const answer = ctx.response.raw;
    if (answer.redirected) location.reload(); // the session has ended
    if (answer.redirected || !answer.ok) event.preventDefault();
    if (!answer.redirected && !answer.ok) lost();
    if (answer.ok && !answer.redirected) {
      last = new Date();
      say(`Updated ${clock(last)}`, false);
    }
  });
  document.addEventListener("htmx:error", lost);
  const refresh = () => {
    if (document.hidden) return;
    const here = new URL(location.href);
    here.searchParams.delete("done");
    htmx.ajax("GET", here.pathname + here.search, {
      target: "#live", select: "#live", swap: "outerMorph", selectOOB: "#pill:outerMorph",
    });
  };
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
  document.addEventListener("control-center:refresh", refresh);
}

// The events of the Amplitude form: whole groups at once, how many are chosen, how many that is a month.
function chooseEvents() {
  const boxes = [...document.querySelectorAll('input[name="event"]')];
  if (!boxes.length) return;
  const count = () => {
    for (const group of document.querySelectorAll("[data-group]")) {
      const mine = boxes.filter((box) => group.contains(box));
      group.querySelector("[data-count]").textContent = `${mine.filter((box) => box.checked).length} of ${mine.length}`;
    }
    const month = boxes.filter((box) => box.checked).reduce((sum, box) => sum + Number(box.dataset.month), 0);
    document.querySelector("[data-total]").textContent = Math.round(month).toLocaleString("en-US");
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-all], [data-none]");
    if (button) {
      event.preventDefault();
      const prefix = button.dataset.all ?? button.dataset.none;
      for (const box of boxes) {
        if (prefix === "every" || box.value.startsWith(`${prefix}.`)) box.checked = button.dataset.all !== undefined;
      }
      count();
    }
    const use = event.target.closest("[data-use]");
    if (use) {
      event.preventDefault();
      document.getElementById(`endpoint-${use.dataset.use}`).checked = true;
      document.getElementById("trial").replaceChildren();
    }
  });
  document.addEventListener("change", (event) => {
    if (boxes.includes(event.target)) count();
  });
}

// After a form came back with problems, people hear and see them first.
document.querySelector(".errors")?.focus();
follow();
chooseEvents();
