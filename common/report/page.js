// The living parts of the report: atoms that turn, and a table that sorts. Everything it shows is in #atom-data.
"use strict";
(() => {
  const source = document.getElementById("atom-data");
  if (!source) return;
  const atoms = JSON.parse(source.textContent); // columns: key -> values; fields: what each column is
  const count = atoms.columns.number.length;
  const byId = (id) => document.getElementById(id);
  const show = (field, value) => (value === null ? "–" : typeof value === "number" ? value.toFixed(field.digits) : value);

  // The table
  const limit = 1000;
  const body = byId("atom-table").tBodies[0];
  const heads = [...byId("atom-table").tHead.rows[0].cells];
  let order = [...Array(count).keys()];
  let chosen = null;
  const fill = () => {
    body.replaceChildren(...order.slice(0, limit).map((i) => {
      const row = document.createElement("tr");
      row.dataset.atom = i;
      row.classList.toggle("chosen", i === chosen);
      for (const field of atoms.fields) {
        const cell = row.insertCell();
        cell.textContent = show(field, atoms.columns[field.key][i]);
        if (field.key !== "symbol") cell.className = "number";
      }
      return row;
    }));
  };
  const sortBy = (at) => {
    const down = heads[at].getAttribute("aria-sort") === "ascending";
    const values = atoms.columns[atoms.fields[at].key];
    const compare = (a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b);
    order.sort((a, b) => (values[a] === null) - (values[b] === null) || (down ? -compare(a, b) : compare(a, b)));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== at ? "none" : down ? "descending" : "ascending"));
    fill();
  };
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => sortBy(at)));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.atom), false);
  });
  fill();

  // The atoms in 3D
  const viridis = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
    [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  const mix = (t) => {
    const at = Math.min(Math.max(t, 0), 1) * (viridis.length - 1), i = Math.min(Math.floor(at), viridis.length - 2);
    return viridis[i].map((v, k) => Math.round(v + (at - i) * (viridis[i + 1][k] - v)));
  };
  const { x, y, z, symbol } = atoms.columns;
  let viewer = null, marked = null;
  const choose = (i, scroll) => {
    chosen = i;
    for (const row of body.rows) row.classList.toggle("chosen", Number(row.dataset.atom) === i);
    if (scroll) {
      const row = [...body.rows].find((r) => Number(r.dataset.atom) === i), box = byId("atom-table").parentElement;
      if (row) box.scrollTop = row.offsetTop - box.clientHeight / 2;
    }
    byId("picked").textContent = atoms.fields.map((f) => `${f.name} ${show(f, atoms.columns[f.key][i])} ${f.unit}`.trim()).join(" · ");
    if (!viewer) return;
    if (marked) viewer.removeShape(marked);
    marked = viewer.addSphere({ center: { x: x[i], y: y[i], z: z[i] }, radius: 1.25 * radius(), color: "#D55E00", opacity: 0.45 });
    viewer.render();
  };
  const radius = () => Number(byId("size").value) * atoms.spacing;
  const colours = () => {
    const key = byId("colour").value, values = atoms.columns[key], legend = byId("legend");
    const known = (values || []).filter((v) => v !== null);
    if (key === "symbol" || !known.length) {
      legend.hidden = true;
      return (i) => $3Dmol.elementColors.Jmol[symbol[i]] ?? 0x9aa5b1;
    }
    const field = atoms.fields.find((f) => f.key === key);
    const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
    legend.hidden = false;
    legend.children[0].textContent = show(field, low);
    legend.children[1].style.background = `linear-gradient(90deg, ${viridis.map((c) => `rgb(${c})`).join(", ")})`;
    legend.children[2].textContent = `${show(field, high)} ${field.unit}`;
    return (i) => {
      if (values[i] === null) return 0x9aa5b1;
      const [r, g, b] = mix(high > low ? (values[i] - low) / (high - low) : 0.5);
      return (r << 16) | (g << 8) | b;
    };
  };
  let lines = [];
  const drawNeighbours = () => {
    lines.forEach((line) => viewer.removeShape(line));
    lines = [];
    if (!byId("neighbours").checked) return;
    const reach = (1.25 * atoms.spacing) ** 2, shape = viewer.addShape({ color: "#7b8794" });
    lines.push(shape);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < i; j++) {
        const far = (x[i] - x[j]) ** 2 + (y[i] - y[j]) ** 2 + (z[i] - z[j]) ** 2;
        if (far < reach) shape.addCylinder({ start: { x: x[i], y: y[i], z: z[i] }, end: { x: x[j], y: y[j], z: z[j] }, radius: 0.03 * atoms.spacing });
      }
    }
  };
  const restyle = () => {
    const colour = colours();
    viewer.setStyle({}, { sphere: { radius: radius(), colorfunc: (atom) => colour(atom.serial) } });
    viewer.render();
  };
  const canTurn = () => {
    const context = document.createElement("canvas");
    return Boolean(window.WebGLRenderingContext && (context.getContext("webgl2") || context.getContext("webgl")));
  };
  const box = byId("viewer");
  if (!count || !canTurn()) {
    box.hidden = true;
    byId("viewer-controls").hidden = true;
    byId("viewer-missing").hidden = Boolean(!count);
    return;
  }
  viewer = $3Dmol.createViewer(box, { backgroundColor: "white", antialias: true });
  const model = viewer.addModel();
  model.addAtoms(symbol.map((elem, i) => ({ elem, x: x[i], y: y[i], z: z[i], serial: i, bonds: [], bondOrder: [] })));
  viewer.setViewStyle({ style: "outline", color: "black", width: 0.03 });
  viewer.setClickable({}, true, (atom) => choose(atom.serial, true));
  restyle();
  const whole = () => { viewer.zoomTo(); viewer.zoom(0.82); };
  whole();
  viewer.rotate(20, "x");
  viewer.rotate(-25, "y");
  viewer.render();
  byId("colour").addEventListener("change", restyle);
  byId("size").addEventListener("input", restyle);
  byId("neighbours").disabled = count > 2000;
  byId("neighbours").addEventListener("change", () => { drawNeighbours(); viewer.render(); });
  byId("reset").addEventListener("click", () => { whole(); viewer.render(); });
  // The wheel scrolls the page until the picture has been clicked.
  let held = false;
  box.addEventListener("pointerdown", () => { held = true; });
  box.addEventListener("pointerleave", () => { held = false; });
  box.addEventListener("wheel", (event) => { if (!held) event.stopPropagation(); }, true);
  new ResizeObserver(() => viewer.resize()).observe(box);
})();
