"""The script that draws the plots of the report, and the style sheet: light, dark, narrow and printed."""

from __future__ import annotations

SCRIPT = """
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {responsive: true, displayModeBar: false};  // the bar would cover points
  const plots = [...document.querySelectorAll(".plot")];
  const each = (group, action) => plots.filter(plot => group.contains(plot)).forEach(action);

  // Colours come from the style sheet, so that there is one place that says what light and dark mean.
  const layout = (base, width) => {
    const css = getComputedStyle(root), colour = name => css.getPropertyValue(name).trim();
    const own = structuredClone(base);
    own.font.color = colour("--ink");
    own.hoverlabel = {bgcolor: colour("--panel"), bordercolor: colour("--line"), font: {color: colour("--ink")}};
    own.dragmode = touch ? false : "zoom";  // a finger on a plot scrolls the page
    for (const axis of [own.xaxis, own.yaxis])
      Object.assign(axis, {gridcolor: colour("--line"), linecolor: colour("--line"), fixedrange: touch});
    if (width) own.width = width;
    return own;
  };
  const draw = printing => plots.forEach(plot => {
    const width = printing ? (plot.closest(".small") ? 320 : 660) : 0, figure = figures[plot.id];
    (plot.data ? Plotly.react : Plotly.newPlot)(plot, figure.data, layout(figure.layout, width), config);
  });

  document.querySelectorAll(".plots").forEach(group => {
    group.querySelectorAll(".key").forEach(key => key.addEventListener("click", () => {
      const visible = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", visible);
      each(group, plot => {
        const own = plot.data.flatMap((trace, i) => trace.legendgroup === key.dataset.model ? [i] : []);
        if (own.length) Plotly.restyle(plot, {visible}, own);
      });
    }));
    group.querySelectorAll("select").forEach(select => select.addEventListener("change", () => {
      each(group, plot => { plot.closest("figure").hidden = select.value && select.value !== plot.id; });
      each(group, plot => { if (plot.offsetParent) Plotly.Plots.resize(plot); });
    }));
  });
  const folded = [];
  addEventListener("beforeprint", () => {
    root.classList.add("print");
    document.querySelectorAll("details:not([open])").forEach(each => { folded.push(each); each.open = true; });
    draw(true);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("print");
    folded.splice(0).forEach(each => { each.open = false; });
    draw(false);
  });
  dark.addEventListener("change", () => draw(false));
  draw(false);
})();
"""

STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d5dbe1;--panel:#f4f6f8;--link:#0b5cad;--shade:#0002;
  --high:#0072B2;--low:#D55E00;--part:0%}
@media screen and (prefers-color-scheme:dark){:root:not(.print){--paper:#14171c;--ink:#e6e9ed;--soft:#a3adb8;
  --line:#39414b;--panel:#1e232b;--link:#7cb7ff;--shade:#000a;--high:#3FA0DC;--low:#E0782A}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:3.5rem;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:70rem;padding:0 1rem 4rem;background:var(--paper);color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .5rem} h2{font-size:1.35rem;margin:0 0 .5rem}
h3{font-size:1rem;margin:1.5rem 0 .4rem} a{color:var(--link)}
small{display:block;color:var(--soft);font-size:.87em;font-weight:400}
header p,.how,.caption,li{max-width:48rem} header p{margin:.3rem 0}
nav{display:flex;flex-wrap:wrap;gap:.2rem .4rem;padding:.5rem 0;margin-top:.5rem;background:var(--paper)}
nav a{padding:.3rem .7rem;border:1px solid var(--line);border-radius:2rem;text-decoration:none;font-size:.9rem}
section{margin-top:1.5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
.how{border-left:3px solid var(--line);padding:.1rem .9rem;margin:.5rem 0 1rem;font-size:.95rem;color:var(--soft)}
.how p{color:var(--ink);margin:.3rem 0} .verdict-lead{font-size:1.2rem;line-height:1.4}
header ul{margin:.3rem 0 .8rem;padding-left:1.2rem}
.scroll{overflow-x:auto;background:linear-gradient(var(--paper),var(--paper)) right/1.5rem 100% no-repeat local,
  linear-gradient(to left,var(--shade),transparent) right/.8rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,30rem)}
th,td{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line);min-width:4rem}
thead th{vertical-align:bottom;font-weight:600} tbody th{font-weight:500} td .ci{color:var(--soft);white-space:nowrap}
th:first-child{position:sticky;left:0;background:var(--paper);min-width:7rem;max-width:11rem}
.group th{max-width:none!important;padding-top:.9rem;font-weight:700} .group span{position:sticky;left:0}
.verdict{display:block;font-size:.87em;line-height:1.25;margin-top:.15rem;padding-left:.4rem;border-left:3px solid}
.above{border-color:#009E73}.below{border-color:#D55E00;font-weight:700}.neither,#length .verdict{border-color:#808080;
  font-weight:400}
.plots{margin:1rem 0}.grid{display:grid;gap:1rem 1.5rem;grid-template-columns:minmax(0,1fr)}
.small .grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
figure{margin:0;min-width:0;break-inside:avoid} figure[hidden]{display:none} figure h3{margin-top:.5rem}
.caption,.hint{font-size:.85rem;color:var(--soft)} .legend{display:flex;flex-wrap:wrap;gap:.4rem;align-items:center}
.key,select{font:inherit;font-size:.9rem;color:inherit;background:var(--panel);border:1px solid var(--line);
  border-radius:.4rem;padding:.3rem .6rem;max-width:100%} .key{cursor:pointer} .key[aria-pressed=false]{opacity:.45;
  text-decoration:line-through} label{font-size:.9rem;max-width:100%} details{margin:1rem 0} summary{cursor:pointer}
.high{background:color-mix(in srgb,var(--high) var(--part),transparent)}
.low{background:color-mix(in srgb,var(--low) var(--part),transparent)}
.beside{display:grid;gap:0 1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
.cell{display:block;padding:.3rem .6rem;border-radius:.2rem;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.pair{display:grid;gap:.3rem 1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));margin:1rem 0 2rem;
  border-left:3px solid var(--line);padding-left:.8rem}
.pair>*{min-width:0} .pair .asked{grid-column:1/-1}
.pair h4{margin:.4rem 0 .2rem;font-size:.87rem;color:var(--soft);font-weight:600}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.6rem .8rem;max-height:18rem;overflow:auto;
  border-radius:.3rem;font-size:.95rem;margin:0 0 .3rem}
.asked .text{color:var(--soft)}
.text b{display:block;font-size:.8rem} .text .turn+.turn{margin-top:.5rem} .text em{color:var(--soft)}
.said{display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.87rem;color:var(--soft);font-variant-numeric:tabular-nums;
  margin:0 0 .6rem} .said b{color:var(--ink);font-weight:600}
.long summary{background:var(--panel);padding:.6rem .8rem;border-radius:.3rem;font-size:.95rem;overflow-wrap:anywhere}
.long[open] summary{color:var(--soft);max-height:1.6rem;overflow:hidden;padding:.1rem .8rem} .long{margin:0}
code{font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media (min-width:60rem){nav{position:sticky;top:0;z-index:5}}
@media print{details::details-content{content-visibility:visible;height:auto} .text{max-height:none}
  body{max-width:none;padding:0;font-size:10pt} nav,select,label,.hint{display:none}
  .scroll{overflow:visible;background:none} table{font-size:8pt} tr,.how{break-inside:avoid}
  th,td{padding-right:.5rem;min-width:0} th:first-child{position:static} h2,h3,.legend,.group{break-after:avoid}}
"""
