"use strict";
// Draws what the page's data describe (report.py). A chart is drawn when its tab is first opened, and again when
// the colours of the system change. While a training runs (`data.live`), its charts and figures are asked for anew.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");
const painters = new Map(); // from a chart's id to what draws it
const drawn = new Set();

function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), soft: of("--soft"), paper: of("--paper"), faint: of("--faint"), accent: of("--accent") };
}

function merged(base, more) {
  const result = { ...base };
  for (const [key, value] of Object.entries(more || {})) {
    const both = value && typeof value === "object" && !Array.isArray(value);
    result[key] = both ? merged(base[key] || {}, value) : value;
  }
  return result;
}

function plot(id, traces, layout) {
  const t = theme();
  const axis = { gridcolor: t.faint, zerolinecolor: t.faint, linecolor: t.faint, automargin: true };
  const base = {
    font: { color: t.ink, family: "system-ui, sans-serif", size: 12 }, paper_bgcolor: t.paper, plot_bgcolor: t.paper,
    margin: { l: 50, r: 20, t: 40, b: 45 }, hovermode: "closest", xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: t.paper, bordercolor: t.faint, font: { color: t.ink } },
    colorway: dark.matches ? ["#6cb0ff", "#ff9d5c", "#5fd38d", "#d2a8ff"] : ["#0b5cd5", "#c2410c", "#1a7f37", "#8250df"],
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" }, uirevision: id, // a chart that is drawn anew stays where it was zoomed to
  };
  if (layout.title) base.title = { x: 0.01, xanchor: "left" };
  const config = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  return Plotly.react(byId(id), traces, merged(base, layout), config);
}

const heat = () => (dark.matches ? [[0, "#14171b"], [0.5, "#1d5fb8"], [1, "#d5e8ff"]]
                                 : [[0, "#ffffff"], [0.5, "#6aa5f0"], [1, "#052d6b"]]);

// ---- tabs -----------------------------------------------------------------------------------------------------------
const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab, focus) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
  tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  history.replaceState(null, "", "#" + tab.dataset.name);
  paint();
}

function paint() {
  for (const [id, painter] of painters) {
    if (byId(id).closest("[role=tabpanel]").hidden) continue;
    if (drawn.has(id)) Plotly.Plots.resize(byId(id)); // the window may have changed while the tab was closed
    else painter();
    drawn.add(id);
  }
}

for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    open(tabs[(next + tabs.length) % tabs.length], true);
  });
}

// ---- plain charts and sortable tables -------------------------------------------------------------------------------
function chart(id) {
  painters.set(id, () => plot(id, data.charts[id].traces, data.charts[id].layout));
}
Object.keys(data.charts).forEach(chart);

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => { const text = row.cells[column].textContent; return isNaN(+text) ? text : +text; };
    const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (descending ? -1 : 1);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

// ---- attention ------------------------------------------------------------------------------------------------------
function options(select, labels) {
  select.replaceChildren(...labels.map(([value, label]) => new Option(label, value)));
}

const unpacked = new Map();
function probabilities(text, place, head) {
  const key = [text, place, head].join();
  if (!unpacked.has(key)) {
    const bytes = Uint8Array.from(atob(data.maps[text].heads[place][head]), (c) => c.charCodeAt(0));
    const n = data.maps[text].tokens.length;
    const rows = [];
    for (let i = 0; i < n; i++) rows.push(Array.from(bytes.subarray(i * n, i * n + n), (b, j) => (j > i ? null : b / 255)));
    unpacked.set(key, rows);
  }
  return unpacked.get(key);
}

function attention() {
  const [text, layer, head, query, score] = ["text", "layer", "head", "query", "score"].map((name) => byId("at-" + name));
  options(text, data.maps.map((map, i) => [i, map.name]));
  options(score, data.scores.map((name) => [name, name]));
  const map = () => data.maps[+text.value];
  const place = () => map().layers.indexOf(+layer.value);

  function relabel() {
    const kept = [layer.value, head.value];
    options(layer, map().layers.map((l) => [l, `${l} (${data.kinds[l]})`]));
    options(head, map().heads[0].map((_, h) => [h, h]));
    if ([...layer.options].some((o) => o.value === kept[0])) layer.value = kept[0];
    if (kept[1]) head.value = kept[1];
    options(query, map().tokens.map((token, i) => [i, `${i}: ${token}`]));
    query.value = map().tokens.length - 1;
  }

  function picture() {
    const tokens = map().tokens.map(escaped);
    const z = probabilities(+text.value, place(), +head.value);
    const slots = tokens.map((_, i) => i);
    const every = narrow.matches ? Math.ceil(tokens.length / 16) : 1;
    const short = map().tokens.map((t, i) => (i % every ? "" : escaped(t.length > 12 ? t.slice(0, 11) + "…" : t)));
    const ticks = { tickmode: "array", tickvals: slots, ticktext: short,
      tickfont: { size: tokens.length > 40 ? 9 : 11 }, showgrid: false, zeroline: false };
    const cells = z.map((row, i) => row.map((p, j) => (p === null ? "" : `${i} <b>${tokens[i]}</b> pays ${p.toFixed(3)} to ${j} <b>${tokens[j]}</b>`)));
    plot("at-map", [{ type: "heatmap", z, x: slots, y: slots, text: cells, hovertemplate: "%{text}<extra></extra>",
      hoverongaps: false, colorscale: heat(), zmin: 0, zmax: 1, xgap: 0.5, ygap: 0.5,
      colorbar: { thickness: 10, title: { text: "p" } }, showscale: !narrow.matches }], {
      title: { text: `layer ${layer.value}, head ${head.value}: query down, key across`, font: { size: 14 } },
      xaxis: { ...ticks, tickangle: -60 }, yaxis: { ...ticks, autorange: "reversed" }, margin: { l: 90, b: 90 } });
    answer();
    for (const row of byId("at-table").tBodies[0].rows)
      row.classList.toggle("chosen", row.dataset.layer === layer.value && row.dataset.head === head.value);
  }

  function answer() {
    const row = probabilities(+text.value, place(), +head.value)[+query.value];
    const best = row.map((p, j) => [p, j]).filter(([p]) => p !== null).sort((a, b) => b[0] - a[0]).slice(0, 6);
    byId("at-answer").replaceChildren(...best.flatMap(([p, j]) => {
      const code = document.createElement("code");
      code.textContent = map().tokens[j];
      return [`${p.toFixed(2)} to ${j} `, code, "   "];
    }));
  }

  function overview() {
    const layers = [...new Set(data.heads.map((h) => h.layer))];
    const heads = [...new Set(data.heads.map((h) => h.head))];
    const value = new Map(data.heads.map((h) => [h.layer + "," + h.head, h[score.value]]));
    const z = layers.map((l) => heads.map((h) => value.get(l + "," + h) ?? null));
    plot("at-overview", [{ type: "heatmap", z, x: heads, y: layers, colorscale: heat(), hoverongaps: false,
      hovertemplate: `layer %{y}, head %{x}: ${score.value} %{z:.4f}<extra></extra>`, colorbar: { thickness: 10 }, xgap: 1, ygap: 1 }], {
      title: { text: score.value + " of every head", font: { size: 14 } },
      xaxis: { title: { text: "head" }, dtick: 1, showgrid: false }, yaxis: { title: { text: "layer" }, dtick: 1, showgrid: false, autorange: "reversed" } });
  }

  function likeness() {
    const z = data.similarity[layer.value];
    plot("at-similarity", [{ type: "heatmap", z, colorscale: heat(), zmin: 0, zmax: 1, colorbar: { thickness: 10 },
      hovertemplate: "head %{y} and head %{x}: cosine %{z:.3f}<extra></extra>", xgap: 1, ygap: 1 }], {
      title: { text: `layer ${layer.value}: which heads look at the same`, font: { size: 14 } },
      xaxis: { title: { text: "head" }, dtick: 1, showgrid: false }, yaxis: { title: { text: "head" }, dtick: 1, showgrid: false, autorange: "reversed" } });
  }

  function show(l, h) { layer.value = l; head.value = h; picture(); likeness(); }
  for (const row of byId("at-table").tBodies[0].rows)
    row.addEventListener("click", () => show(row.dataset.layer, row.dataset.head));
  text.addEventListener("change", () => { relabel(); picture(); likeness(); });
  layer.addEventListener("change", () => { picture(); likeness(); });
  head.addEventListener("change", picture);
  query.addEventListener("change", answer);
  score.addEventListener("change", overview);
  relabel();
  painters.set("at-map", picture);
  painters.set("at-overview", overview);
  painters.set("at-similarity", likeness);
}
if (data.maps.length) attention();

// ---- embedding ------------------------------------------------------------------------------------------------------
function embedding() {
  const found = data.embedding;
  const method = byId("em-method"), token = byId("em-token");
  if (!found.tsne.length) method.querySelector("[value=tsne]").remove();
  const name = (id) => data.vocabulary[id];
  const hover = found.tokens.map((id, i) => `<b>${escaped(name(id))}</b><br>${found.frequency[i].toLocaleString("en")} times`
    + `<br>near: ${found.neighbours[i].slice(0, 4).map(([other]) => escaped(name(other))).join("  ")}`);
  const colour = found.frequency.map((n) => Math.log10(n));
  const words = found.tokens.map((_, i) => i).filter((i) => /[a-z]{3}/i.test(name(found.tokens[i])));

  // The words, from the most frequent on, whose labels fit beside those that stand already. Zooming in makes room.
  function labels(places, box, ranges) {
    const taken = [], texts = places.map(() => "");
    for (const i of words) {
      const text = name(found.tokens[i]).trim();
      const [x, y] = places[i].map((value, axis) => (value - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0]) * box[axis]);
      const half = 3 * text.length + 3;
      if (x - half < 0 || x + half > box[0] || y < 0 || y + 18 > box[1]) continue;
      if (taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 13)) continue;
      taken.push({ x, y, half });
      texts[i] = escaped(text);
    }
    return texts;
  }

  function label() {
    const chart = byId("em-map"), { xaxis, yaxis } = chart._fullLayout, places = found[method.value];
    const texts = labels(places, [xaxis._length, yaxis._length], [xaxis.range, yaxis.range]);
    if (texts.join() !== chart.data[0].text.join()) Plotly.restyle(chart, { text: [texts] }, [0]);
  }

  function map() {
    const places = found[method.value], t = theme();
    const shares = found.explained.map((s) => ` (${(100 * s).toFixed(1)}% of the spread)`);
    const chosen = token.selectedIndex;
    const chart = byId("em-map"), first = !chart.data;
    plot("em-map", [
      { type: "scatter", mode: "markers+text", x: places.map((p) => p[0]), y: places.map((p) => p[1]), hovertext: hover,
        hovertemplate: "%{hovertext}<extra></extra>", text: places.map(() => ""),
        textposition: "top center", textfont: { size: 9, color: t.soft },
        marker: { size: 7, color: colour, colorscale: "Viridis", colorbar: { title: { text: "frequency" }, thickness: 10,
          tickvals: [1, 2, 3, 4, 5], ticktext: ["10", "100", "1k", "10k", "100k"] }, showscale: !narrow.matches } },
      { type: "scatter", mode: "markers", x: [places[chosen]?.[0]], y: [places[chosen]?.[1]], hoverinfo: "skip",
        marker: { size: 16, color: "rgba(0,0,0,0)", line: { color: t.ink, width: 2 } } }], {
      title: { text: method.value === "pca" ? "principal components" : "t-SNE", font: { size: 14 } }, showlegend: false,
      uirevision: method.value,
      xaxis: { title: { text: method.value === "pca" ? "first" + shares[0] : "" } },
      yaxis: { title: { text: method.value === "pca" ? "second" + shares[1] : "" } } });
    if (first) chart.on("plotly_afterplot", label);
    label();
  }

  function neighbours() {
    const rows = found.neighbours[token.selectedIndex].map(([id, cosine]) => {
      const row = document.createElement("tr");
      for (const value of [name(id), cosine.toFixed(3)]) row.insertCell().textContent = value;
      return row;
    });
    byId("em-neighbours").tBodies[0].replaceChildren(...rows);
  }

  function norms() {
    plot("em-norms", [{ type: "scatter", mode: "markers", x: found.frequency, y: found.norms, hovertext: hover,
      hovertemplate: "%{hovertext}<br>norm %{y:.3f}<extra></extra>", marker: { size: 5 } }], {
      title: { text: "length of the vector by frequency", font: { size: 14 } },
      xaxis: { type: "log", title: { text: "occurrences in the training text" } }, yaxis: { title: { text: "norm" } } });
  }

  options(token, found.tokens.map((id) => [id, name(id)]));
  token.addEventListener("change", () => { neighbours(); map(); });
  method.addEventListener("change", map);
  neighbours();
  painters.set("em-map", map);
  painters.set("em-norms", norms);
}
if (data.embedding.tokens.length) embedding();

// ---- while a training runs --------------------------------------------------------------------------------------------
async function follow() {
  let found = null;
  try { found = await (await fetch("live.json")).json(); } catch { /* whoever answered has gone */ }
  if (!found) {
    byId("live").textContent = "Nobody answers: the training has ended, or the command was stopped. This is the last that was seen.";
    setTimeout(follow, 5 * data.live * 1000); // one answer may be lost
    return;
  }
  for (const id of Object.keys(found.charts)) {
    byId(id).hidden = false; // until the first probe, and the first line of the log, their places are not shown
    chart(id);
    drawn.delete(id);
  }
  data.charts = found.charts;
  byId("head").innerHTML = found.head;
  byId("tr-figures").innerHTML = found.figures;
  paint();
  if (found.live) setTimeout(follow, data.live * 1000);
}
if (data.live) setTimeout(follow, data.live * 1000);

dark.addEventListener("change", () => { drawn.clear(); paint(); });
const named = (name) => tabs.find((tab) => tab.dataset.name === name);
open(named(location.hash.slice(1)) || named(data.first) || tabs[0]);
