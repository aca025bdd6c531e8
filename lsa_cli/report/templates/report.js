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

// The meaning of a term: the browser shows the title on hover, but not on focus, nor on a touch screen, nor on paper.
const shown = document.createElement("div"), blocks = new Map(), printed = new Map(), lines = new Map();
shown.id = "meaning";
shown.role = "tooltip";
shown.popover = "manual";
document.body.append(shown);
for (const term of document.querySelectorAll("abbr")) {
  term.dataset.meaning = term.title;
  term.removeAttribute("title");
  const block = term.closest(".chart")?.closest(".wide") || term.closest(".wide, ul, dl, p, h2, h3, h4, .cards, .verdict") || term.parentElement;
  if (!blocks.has(block)) blocks.set(block, new Set());
  const known = blocks.get(block), name = term.textContent.toLowerCase();
  // The first of a block is a stop of the keyboard; a head of a table and a fold are one by themselves.
  if (!known.has(name) && !term.closest("button, summary")) term.tabIndex = 0;
  known.add(name);
  // Paper has a meaning once in each section, below what has the term first.
  const section = term.closest("section, header");
  if (!printed.has(section)) printed.set(section, new Set());
  if (!printed.get(section).has(name)) {
    printed.get(section).add(name);
    if (!lines.has(block)) lines.set(block, []);
    lines.get(block).push(`${term.textContent}: ${term.dataset.meaning}`);
  }
}
for (const [block, meanings] of lines) {
  const line = document.createElement("p");
  line.className = "meanings";
  line.textContent = meanings.join(". ") + ".";
  (block.closest(".verdict, .cards, ul, dl") || block).after(line);
}
const hide = () => { shown.hidePopover(); document.querySelector("[aria-describedby=meaning]")?.removeAttribute("aria-describedby"); };
const show = event => {
  const ours = "abbr, th button, #meaning";
  const near = event.target.closest(ours) || document.activeElement.closest(`${ours}, summary`);  // scrolling moves the mouse over others
  if (near === shown) return;
  const term = near && (near.matches("abbr") ? near : near.querySelector("abbr"));
  hide();
  if (!term) return;
  shown.textContent = term.dataset.meaning;
  shown.showPopover();
  near.setAttribute("aria-describedby", "meaning");
  const at = term.getBoundingClientRect(), room = document.documentElement.clientWidth - shown.offsetWidth - 8;
  shown.style.left = `${scrollX + Math.max(8, Math.min(at.left, room))}px`;
  shown.style.top = `${scrollY + (at.bottom + shown.offsetHeight > innerHeight ? at.top - shown.offsetHeight : at.bottom)}px`;
};
addEventListener("mouseover", show);
addEventListener("focusin", show);
addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
