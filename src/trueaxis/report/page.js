// Draws every plot in the colours of the scheme in force, and again when that or the width changes.
"use strict";

const NARROW = 640;
const LINE = 19, SHORT_LEGEND = 8; // pixels of a legend's entry; entries that need no room beyond the plot's own

/** The same with every "var(--name)" replaced by the value of that property. */
function coloured(value, style) {
  if (typeof value === "string") {
    const found = /^var\((--[a-z]+)\)$/.exec(value);
    return found ? style.getPropertyValue(found[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map((part) => coloured(part, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part, style)]));
}

/** What all plots share: fonts, quiet axes, the legend below. */
function base(narrow) {
  const axis = {
    gridcolor: "var(--line)", zerolinecolor: "var(--line)", linecolor: "var(--line)", automargin: true,
    title: { standoff: 12 }, fixedrange: true, minor: { gridcolor: "var(--line)" },
  };
  return {
    template: { layout: { xaxis: axis, yaxis: axis } },
    font: { family: 'system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif', size: narrow ? 12 : 13.5, color: "var(--ink)" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 12, b: 8 }, dragmode: false,
    legend: { orientation: "h", x: 0, y: narrow ? -0.22 : -0.16, yanchor: "top", yref: "paper", font: { size: narrow ? 12 : 13 } },
    hoverlabel: { bgcolor: "var(--ink)", bordercolor: "var(--ink)", font: { color: "var(--page)" } },
  };
}

/** One object over another, property by property. */
function merged(under, over) {
  const result = { ...under };
  for (const [key, value] of Object.entries(over)) {
    const both = [result[key], value].every((one) => one && typeof one === "object" && !Array.isArray(one));
    result[key] = both ? merged(result[key], value) : value;
  }
  return result;
}

/** Pixels that a narrow plot needs beyond its height, for a legend of one entry a line. */
function longer(data) {
  const entries = data.filter((trace) => trace.name && trace.showlegend !== false).length;
  return LINE * Math.max(0, entries - SHORT_LEGEND);
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const place of document.querySelectorAll("[data-plot]")) {
    const plot = JSON.parse(document.getElementById(place.dataset.plot).textContent);
    const narrow = place.clientWidth < NARROW;
    const layout = merged(base(narrow), plot.layout);
    place.style.height = `${plot.height + (narrow ? longer(plot.data) : 0)}px`;
    Plotly.react(place, coloured(plot.data, style), coloured(layout, style), { responsive: true, displayModeBar: false });
  }
}

document.documentElement.classList.remove("still"); // until here a note stood where the plots will
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
matchMedia(`(max-width: ${NARROW}px)`).addEventListener("change", draw);
