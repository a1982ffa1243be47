"use strict";
// Sorts a table by the column whose heading is clicked, and hides the lines that lack the words of the filter; opens what
// a link leads to.
(() => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const key = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? (cell.dataset.sort === "" ? null : Number(cell.dataset.sort)) : cell.textContent.trim();
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  for (const table of tables) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }
  const open = () => {
    const aim = document.getElementById(location.hash.slice(1));
    if (aim?.tagName === "DETAILS") aim.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
  const filter = document.getElementById("filter");
  if (filter === null) return;
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const table of tables) {
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden || table.classList.contains("more") ? 0 : 1; // the other columns of lines counted before
      }
    }
    filter.form.querySelector("output").textContent = words.length ? `${shown} lines` : "";
  });
})();
