"use strict";
// Values of the marks under the pointer; without a script, browsers show the titles.
(() => {
  const tip = document.getElementById("tip");
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  let hot = null;
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (hot && hot !== mark) hot.classList.remove("hot");
    hot = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("hot");
    tip.textContent = mark.dataset.tip;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18 + tip.offsetHeight < innerHeight;
    tip.style.left = Math.max(x, 8) + "px";
    tip.style.top = (below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 10) + "px";
  };
  addEventListener("pointermove", show);
  addEventListener("pointerdown", show);
  addEventListener("scroll", () => { tip.hidden = true; }, true);
})();
// The table of candidates: sort by a column, filter by text and by the operator of a site.
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows];
  const value = (row, i) => {
    const cell = row.cells[i], text = cell.dataset.v === undefined ? cell.textContent : cell.dataset.v;
    return text === "" ? -Infinity : Number(text);
  };
  table.querySelectorAll("th").forEach((head, i) => {
    if (!head.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort((a, b) => (value(b, i) - value(a, i) || 0) * (down ? 1 : -1));
      body.append(...rows);
    });
  });
  const text = document.getElementById("filter"), site = document.getElementById("site");
  const op = document.getElementById("op"), shown = document.getElementById("shown");
  const filter = () => {
    const words = text.value.trim().toLowerCase(), place = site.selectedIndex - 1, digit = op.value;
    let number = 0;
    for (const row of rows) {
      const choices = row.lastElementChild.textContent;
      const fits = (!words || row.textContent.toLowerCase().includes(words)) &&
        (place < 0 || !digit || choices[place] === digit);
      row.hidden = !fits;
      number += fits;
    }
    shown.textContent = number + " of " + rows.length;
  };
  site.addEventListener("change", () => {
    const ops = (site.selectedOptions[0].dataset.ops || "").split(" ").filter(Boolean);
    op.replaceChildren(new Option("any", ""), ...ops.map((name, i) => new Option(name, i.toString(36))));
    op.disabled = !ops.length;
    filter();
  });
  op.addEventListener("change", filter);
  text.addEventListener("input", filter);
  document.querySelector(".controls").hidden = false;
  filter();
})();
