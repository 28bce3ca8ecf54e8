"""What the page of a policy-optimisation run adds to the house style: cards, texts side by side, linked plots."""

from __future__ import annotations

ALARM, BEST = "#D55E00", "#009E73"
"""Colours of the lines at alarms and at the checkpoint that is kept as best; both readable on light and dark."""

SCRIPT = """
(() => {
  // Plots of one group share their steps: what one zooms into, all show.
  document.querySelectorAll(".aligned").forEach(group => {
    const plots = [...group.querySelectorAll(".plot")];
    plots.forEach(plot => plot.on("plotly_relayout", () => {
      const [low, high] = plot.layout.xaxis.range;
      plots.forEach(other => {
        const [a, b] = other.layout.xaxis.range;
        if (a !== low || b !== high) Plotly.relayout(other, {"xaxis.range": [low, high]});
      });
    }));
  });
  // One step at a time; without a script all of them stand below each other.
  document.querySelectorAll(".moments").forEach(group => {
    const keys = [...group.querySelectorAll("button")];
    const show = chosen => keys.forEach(key => {
      key.setAttribute("aria-pressed", key === chosen);
      document.getElementById(key.dataset.moment).hidden = key !== chosen;
    });
    keys.forEach(key => key.addEventListener("click", () => show(key)));
    if (keys.length) show(keys[keys.length - 1]);
  });
})();
"""

STYLE = """
:root{--alarm:#D55E00;--best:#009E73}
.outlier .text{border-left:3px solid var(--alarm)}
.cards{display:grid;gap:.7rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr));margin:1rem 0}
.card{background:var(--panel);border-top:3px solid var(--line);padding:.6rem .9rem;min-width:0}
.card h3{margin:0;font-size:.87rem;font-weight:500;color:var(--soft)} .card small{margin-top:.2rem}
.card b{font-size:1.25rem;font-variant-numeric:tabular-nums;line-height:1.3;display:block}
.card.alarm{border-color:var(--alarm)} .card.best{border-color:var(--best)}
.lines{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.87rem;color:var(--soft);margin:.5rem 0}
.lines span::before{content:"";display:inline-block;width:1.6rem;margin-right:.4rem;vertical-align:middle;
  border-top:2px solid currentColor}
.lines .alarm::before{border-color:var(--alarm)} .lines .best::before{border-top:2px dotted var(--best)}
.lines .limit::before{border-top:2px dashed #808080} .lines .raw::before{border-top-width:1px;opacity:.5}
.aligned .plots{margin:0} .aligned figure h3{margin:.9rem 0 0} .aligned .legend{margin-top:.9rem}
.aligned .legend:empty{display:none} .aligned .legend+.grid h3{margin-top:.3rem} .aligned .caption{margin:.1rem 0 0}
.moments{display:flex;flex-wrap:wrap;gap:.4rem;margin:1rem 0}
.moments .key[aria-pressed=false]{opacity:1;text-decoration:none}
.moments .key[aria-pressed=true]{background:var(--ink);color:var(--paper)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.7rem .9rem}
@media print{.moment[hidden]{display:block!important} .moments{display:none} .text{max-height:none}}
"""
