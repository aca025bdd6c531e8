const holder = document.querySelector("#data");
if (holder) {
  const models = JSON.parse(holder.textContent);
  const selects = ["one", "other"].map(id => document.getElementById(id));
  const place = document.getElementById("compared");
  const percent = share => {
    if (share === null || share === undefined) return "-";
    const text = (100 * share).toFixed(1);
    return (text === "100.0" && share < 1 ? "99.9" : text === "0.0" && share > 0 ? "0.1" : text) + "%";
  };
  const interval = ([, low, high]) => low === null ? "" : `[${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
  const element = (tag, text, css) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (css) made.className = css;
    return made;
  };
  // Exact two-sided McNemar test, in logarithms.
  const mcnemar = (won, lost) => {
    const n = won + lost;
    let log = -n * Math.LN2, tail = Math.exp(log);
    for (let k = 1; k <= Math.min(won, lost); k++) {
      log += Math.log((n - k + 1) / k);
      tail += Math.exp(log);
    }
    return Math.min(1, 2 * tail);
  };
  const bits = model => Uint8Array.from(atob(model.bits), c => c.charCodeAt(0));
  const ones = byte => { let count = 0; for (; byte; byte &= byte - 1) count++; return count; };
  const only = (a, b) => a.reduce((count, byte, i) => count + ones(byte & ~b[i] & 255), 0);
  const row = (head, cells) => {
    const made = document.createElement("tr"), name = element("th", head, "break");
    name.scope = "row";
    made.append(name, ...cells.map(([text, css]) => element("td", text, css)));
    return made;
  };
  const points = (a, b) => a === null || b === null ? "-" : (100 * (b - a) > -0.05 ? "+" : "") + (100 * (b - a)).toFixed(1).replace("-0.0", "0.0");
  const table = (titles, rows) => {
    const made = document.createElement("table"), head = document.createElement("tr"), body = document.createElement("tbody");
    titles.forEach(([title, css]) => { const cell = element("th", title, css); cell.scope = "col"; head.append(cell); });
    made.append(document.createElement("thead"), body);
    made.tHead.append(head);
    body.append(...rows);
    const wide = element("div", "", "wide");
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", "Any two models");
    wide.tabIndex = 0;
    wide.append(made);
    return wide;
  };
  const verdict = (one, other) => {
    if (one === other) return "Choose two models.";
    if (one.group !== other.group) return "These two have other attacks or other samples, so their numbers do not mean the same.";
    if (!one.bits || !other.bits) return "Single samples are not on this page; lsa compare tests the two reports.";
    const [a, b] = [bits(one), bits(other)], won = only(b, a), lost = only(a, b), p = mcnemar(won, lost);
    const ahead = p > 0.05 ? "neither is ahead beyond noise" : `${won > lost ? other.name : one.name} is ahead beyond noise`;
    return `Of ${one.n} samples, ${won} are robust only in the second model and ${lost} only in the first: ${ahead} (exact McNemar test of this pair alone, p ${p < 1e-15 ? "< 1e-15" : `= ${p.toPrecision(3)}`}).`;
  };
  const show = () => {
    const [one, other] = selects.map(select => models[select.value]);
    const names = { robust: "Robust", clean: "Clean", proven: "Proven", worst: "Worst class" };
    const shares = Object.keys(names).filter(key => key in one.shares && key in other.shares).map(key => {
      const [a, b] = [one.shares[key], other.shares[key]];
      return row(names[key], [[percent(a[0]), "n"], [interval(a)], [percent(b[0]), "n"], [interval(b)], [points(a[0], b[0]), "n"]]);
    });
    const classes = Object.keys(one.classes).filter(name => name in other.classes).map(name => {
      const [a, b] = [one.classes[name], other.classes[name]];
      return row(`Class ${name}`, [[percent(a), "n"], [""], [percent(b), "n"], [""], [points(a, b), "n"]]);
    });
    const mean = value => value === null || value === undefined ? "-" : value.toFixed(3);
    const both = one.attack === other.attack ? Object.keys(one.layers).filter(name => name in other.layers) : [];
    const layers = both.map(name => {
      const [a, b] = [one, other].map(model => model.layers[name]);
      const mark = model => model.mvl.includes(name) ? "MVL" : "";
      const change = a === null || b === null ? "-" : (b >= a ? "+" : "") + (b - a).toFixed(3);
      return row(name, [[mean(a), "n"], [mark(one)], [mean(b), "n"], [mark(other)], [change, "n"]]);
    });
    const titles = [["Accuracy"], ["First", "n"], ["95% interval"], ["Second", "n"], ["95% interval"], ["Change, points", "n"]];
    const parts = [element("p", verdict(one, other)), table(titles, [...shares, ...classes])];
    if (layers.length) parts.push(table([[`Layer, mean under ${one.attack}`], ["First", "n"], ["MVL"], ["Second", "n"], ["MVL"], ["Change", "n"]], layers));
    place.replaceChildren(...parts);
  };
  selects.forEach((select, number) => {
    models.forEach((model, i) => { const option = element("option", model.name); option.value = i; select.append(option); });
    select.value = Math.min(1 - number, models.length - 1);
    select.addEventListener("change", show);
  });
  show();
}
