for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.rows[0].querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      // Numbers by size, intervals by their lower end, a bound by itself, a distance without its norm; last what has no number.
      const key = row => {
        const text = row.cells[column].textContent.trim();
        const plain = text.replace(/^(\[|< ?|l(inf|\d) )/, "");
        const value = parseFloat(plain);
        return Number.isNaN(value) || !/^[-+\d.]/.test(plain) ? text : value;
      };
      const rows = [...body.rows].map(row => [key(row), row]).sort(([x], [y]) => {
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// Paper cannot unfold anything.
const folded = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) { part.open = true; folded.push(part); }
});
addEventListener("afterprint", () => { while (folded.length) folded.pop().open = false; });
