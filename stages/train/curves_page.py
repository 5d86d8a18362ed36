"""The page of curves.py: style and script are in it, so it opens from a disk without a network.

`RELOAD` and `DATA` are put in when it is written. What is switched on or off is kept over a reload.
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">RELOAD
<title>Training</title><style>
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --faint: #d5d9de; --curve: #1f6feb; --dot: #d1480f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --paper: #14171b; --faint: #3a4149; --curve: #6cb0ff; --dot: #ff9b61; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5rem; }
#charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
svg { width: 100%; } text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--faint); } path { fill: none; stroke: var(--curve); stroke-width: 1.8; }
path.raw { stroke-width: 1; opacity: .35; } path.dots { stroke: var(--dot); } circle { fill: var(--dot); }
label { margin-right: 1rem; } #at { font-variant-numeric: tabular-nums; }
</style></head><body>
<h1 id="title"></h1>
<p><label><input type="checkbox" id="raw" checked> each step</label>
<label><input type="checkbox" id="smooth" checked> smoothed</label>
<label><input type="checkbox" id="log"> logarithmic</label>
<label><input type="checkbox" id="tail"> without the first tenth</label> <span id="at"></span></p>
<div id="charts"></div>
<script>
const data = DATA, W = 520, H = 260, M = 46;
const [steps, loss, smooth, lr, norm] = data.curves;
const on = name => document.getElementById(name).checked;
const short = v => Math.abs(v) >= 1e4 || (v !== 0 && Math.abs(v) < 1e-2) ? v.toExponential(1) : +v.toPrecision(3);
document.getElementById("title").textContent = `step ${data.step.toLocaleString()} of `
  + `${data.max_steps.toLocaleString()}, ${data.tokens.toLocaleString()} tokens` + (data.live ? "" : " (ended)");

function ticks(low, high) {  // round numbers within, four or so
  const power = 10 ** Math.floor(Math.log10((high - low) / 4)), ratio = (high - low) / 4 / power;
  const step = (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10) * power, found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(+(i * step).toPrecision(10));
  return found;
}

function chart(title, curves) {
  const first = on("tail") ? data.step / 10 : 0, log = on("log");
  const shown = ([x, y]) => x >= first && y !== null && (!log || y > 0);
  const seen = curves.map(c => ({...c, points: c.points.filter(shown)}));
  const all = seen.flatMap(c => c.points);
  if (!all.length) return "";
  const f = y => log ? Math.log10(y) : y;
  const ys = all.map(p => f(p[1])).sort((a, b) => a - b), xs = all.map(p => p[0]);
  const low = ys[0], high = ys[ys.length - 1] === low ? low + 1 : ys[ys.length - 1];
  const left = xs.reduce((a, b) => Math.min(a, b)), right = Math.max(xs.reduce((a, b) => Math.max(a, b)), left + 1);
  const px = x => M + (x - left) / (right - left) * (W - M - 12);
  const py = y => H - 30 - (f(y) - low) / (high - low) * (H - 62);
  let svg = `<text x="${M}" y="16" font-weight="600">${title}</text>`;
  for (const v of ticks(low, high)) {
    const y = H - 30 - (v - low) / (high - low) * (H - 62);
    svg += `<line class="grid" x1="${M}" x2="${W - 12}" y1="${y}" y2="${y}"/>`
      + `<text x="${M - 5}" y="${y + 4}" text-anchor="end">${short(log ? 10 ** v : v)}</text>`;
  }
  for (const x of ticks(left, right))
    svg += `<text x="${px(x)}" y="${H - 10}" text-anchor="middle">${x.toLocaleString()}</text>`;
  for (const c of seen) {
    const line = c.points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`);
    if (line.length) svg += `<path class="${c.kind}" d="M${line.join("L")}"/>`;
    if (c.kind === "dots") svg += c.points.map(([x, y]) => `<circle cx="${px(x)}" cy="${py(y)}" r="3">`
      + `<title>validation ${y.toFixed(4)} at step ${x}</title></circle>`).join("");
  }
  return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${title}" data-left="${left}" data-right="${right}">`
    + svg + "</svg>";
}

const over = column => steps.map((x, i) => [x, column[i]]);
function draw() {
  const curves = [];
  if (on("raw")) curves.push({kind: "raw", points: over(loss)});
  if (on("smooth")) curves.push({kind: "mean", points: over(smooth)});
  curves.push({kind: "dots", points: data.validation});
  document.getElementById("charts").innerHTML = chart("loss (nats a token); dots: validation", curves)
    + chart("learning rate", [{kind: "mean", points: over(lr)}])
    + chart("norm of the gradient", [{kind: "mean", points: over(norm)}])
    + chart("tokens a second", [{kind: "mean", points: data.speed}]);
}
for (const box of document.querySelectorAll("input")) {
  try { box.checked = JSON.parse(localStorage.getItem(box.id)) ?? box.checked; } catch {}
  box.onchange = () => { try { localStorage.setItem(box.id, box.checked); } catch {} draw(); };
}
document.getElementById("charts").onmousemove = event => {
  const svg = event.target.closest("svg");
  if (!svg || !steps.length) return;
  const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * W;
  const step = +svg.dataset.left + (x - M) / (W - M - 12) * (svg.dataset.right - svg.dataset.left);
  let i = steps.findIndex(s => s >= step);
  if (i < 0) i = steps.length - 1;
  const say = (name, v) => v === null ? "" : `, ${name} ${short(v)}`;
  document.getElementById("at").textContent = `step ${Math.round(steps[i])}` + say("loss", loss[i])
    + say("smooth", smooth[i]) + say("learning rate", lr[i]) + say("norm", norm[i]);
};
draw();
</script></body></html>
"""
