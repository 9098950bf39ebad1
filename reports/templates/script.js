// Sort and filter. Everything can be read without: this adds buttons to what is there and hides rows, no more.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // --- sort: a button in each column header; rows keep to their heading ------------------------------------

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return "";
    const text = (cell.dataset.v ?? cell.innerText).trim();
    const number = Number.parseFloat(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };

  const before = (a, b) => {
    const kinds = [typeof a, typeof b];
    if (kinds[0] !== kinds[1]) return kinds[0] === "number" ? -1 : 1;  // numbers first, whatever has none behind
    return kinds[0] === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  };

  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const groups = [[]];
    for (const row of [...body.rows]) {
      if (row.classList.contains("part")) groups.push([row]);
      else groups.at(-1).push(row);
    }
    for (const group of groups) {
      const heading = group[0]?.classList.contains("part") ? group.shift() : null;
      const keyed = group.map((row) => [valueOf(row, column), row]);
      keyed.sort(([a], [b]) => (descending && typeof a === typeof b ? before(b, a) : before(a, b)));
      body.append(...(heading ? [heading] : []), ...keyed.map(([, row]) => row));
    }
  };

  for (const table of all("table")) {
    const headers = table.tHead ? [...table.tHead.rows[0].cells] : [];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const descending = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }

  // --- filter: words, and a contender's verdict, over every layer's row ------------------------------------

  const form = document.querySelector("form.filter");
  if (form) {
    const rows = all("#layers tr[id]");
    const [words, contender, verdict] = ["words", "contender", "verdict"].map((name) => form.elements[name]);
    const count = form.querySelector("output");

    // What words find a row by: its table's, its heading's, its layer's and the contenders that were timed.
    const textOf = new Map();
    for (const table of all("#layers details.net table")) {
      let heading = "";
      for (const row of table.tBodies[0].rows) {
        if (row.classList.contains("part")) heading = row.textContent;
        const timed = [...row.cells].filter((cell) => cell.dataset.w).map((cell) => cell.dataset.h);
        const said = [table.closest("details").dataset.words, heading, row.querySelector("a")?.text, ...timed];
        textOf.set(row, said.join(" ").toLowerCase());
      }
    }

    const fits = (row) =>
      words.value.toLowerCase().split(/\s+/).every((word) => textOf.get(row).includes(word)) &&
      (verdict.value === "" ||
        [...row.cells].some(
          (cell) =>
            cell.dataset.w === verdict.value && (contender.value === "" || cell.dataset.h === contender.value),
        ));

    const filter = () => {
      const chosen = words.value.trim() !== "" || verdict.value !== "";
      let shown = 0;
      for (const row of rows) {
        row.hidden = !fits(row);
        shown += row.hidden ? 0 : 1;
      }
      for (const part of all("#layers details.net")) {
        const visible = all("tr[id]", part).some((row) => !row.hidden);
        part.hidden = !visible;
        if (chosen) part.open = visible;
      }
      count.value = chosen ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    };

    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }

  // --- a link to a row opens what it lies in ---------------------------------------------------------------

  const show = () => {
    const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row) return;
    for (let part = row.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    row.scrollIntoView();
  };
  addEventListener("hashchange", show);
  show();
})();
