"use strict";
// The circuit as a graph to explore: places and numbers come from the page, this draws, filters and tells.
(() => {
  const data = JSON.parse(document.getElementById("circuit-data").textContent);
  const details = document.getElementById("explore");
  const panel = document.getElementById("explore-told");
  const list = document.getElementById("explore-node");
  const share = document.getElementById("explore-share");
  const signs = document.getElementById("explore-sign");
  const state = document.getElementById("explore-state");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const look = () => {
    const kinds = {
      token: { "background-color": colour("band"), "border-width": 0, "corner-radius": 12 },
      target: { "border-color": colour("ink"), "border-width": 2.5 },
      mlp: { "background-color": colour("band") },
      neuron: { "corner-radius": 14 },
      query: { "corner-radius": 14, "border-style": "dotted" },
      value: { "border-style": "dotted" },
    };
    return [
      { selector: "node", style: {
        shape: "round-rectangle", "corner-radius": 4, width: "data(width)", height: data.box, label: "data(text)",
        "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", "font-size": 11, "line-height": 1.25,
        "font-family": "monospace", color: colour("ink"),
        "background-color": colour("paper"), "border-color": colour("muted"), "border-width": 1 } },
      ...Object.entries(kinds).map(([kind, style]) => ({ selector: `node[kind = "${kind}"]`, style })),
      { selector: "edge", style: { "curve-style": "straight", width: "data(width)", opacity: 0.62 } },
      ...["pos", "neg", "muted"].map((sign) => ({ selector: `edge[sign = "${sign}"]`,
        style: { "line-color": colour(sign), "line-style": sign === "neg" ? "dashed" : "solid" } })),
      { selector: ".away", style: { display: "none" } },
      { selector: ".faint", style: { opacity: 0.18 } },
      { selector: "node.asked", style: { "border-width": 3, "border-color": colour("pos"), "border-style": "solid" } },
    ];
  };

  const line = (parent, tag, text, name) => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    parent.append(element);
    return element;
  };

  let graph = null;
  const filter = () => {
    const least = Number(share.value) / 100;
    const kept = graph.edges().filter((edge) => edge.data("before") < least && ["all", edge.data("sign")].includes(signs.value));
    graph.batch(() => {
      graph.elements().addClass("away");
      kept.removeClass("away");
      kept.connectedNodes().union(graph.nodes('[kind = "target"]')).removeClass("away");
    });
    const shown = graph.nodes().not(".away").length;
    state.textContent = `${share.value} % of all |score|: ${shown} of ${data.nodes.length} nodes, ${kept.length} of ${data.edges.length} edges`;
  };

  const ends = (title, edges, end) => {
    if (!edges.length) return;
    line(panel, "h4", title);
    const entries = line(panel, "ul", "");
    edges.slice(0, 8).forEach((edge) => line(entries, "li", `${edge[end]().data("label")}: ${edge.data("score")}`, edge.data("sign")));
    if (edges.length > 8) line(entries, "li", `and ${edges.length - 8} weaker ones`);
  };

  const ask = (id) => {
    graph.elements().removeClass("faint asked");
    panel.replaceChildren();
    const node = id ? graph.getElementById(id) : null;
    list.value = id || "";
    if (!node) {
      line(panel, "p", "Click a node, or choose one in the list.", "note");
      return;
    }
    graph.elements().not(node.closedNeighborhood()).addClass("faint");
    node.removeClass("away").addClass("asked");
    line(panel, "h3", node.data("label"));
    const where = node.data("pos") === null ? "" : `, position ${node.data("pos")}`;
    line(panel, "p", node.data("kind") === "token" ? `token${where}` : `${node.data("kind")}, layer ${node.data("layer")}${where}; score ${node.data("score")} nats`);
    const promotes = node.data("promotes");
    if (promotes.length) {
      line(panel, "h4", "Promotes");
      const tokens = line(panel, "p", "");
      promotes.forEach((token) => { line(tokens, "span", token, "tok"); tokens.append(" "); });
    }
    ends("Gives to", node.outgoers("edge"), "target");
    ends("Takes from", node.incomers("edge"), "source");
  };

  const start = () => {
    if (graph || !details.clientWidth) return;
    const container = document.getElementById("explore-graph");
    // A page that is scrolled past shall not zoom the graph: the wheel is the graph's only with Ctrl.
    container.addEventListener("wheel", (event) => { if (!event.ctrlKey && !event.metaKey) event.stopImmediatePropagation(); }, true);
    graph = cytoscape({
      container, style: look(), layout: { name: "preset" }, minZoom: 0.2, maxZoom: 4,
      elements: [
        ...data.nodes.map((node) => ({ data: { ...node, text: node.lines.filter(Boolean).join("\n") }, position: { x: node.x, y: node.y } })),
        ...data.edges.map((edge) => ({ data: edge })),
      ],
    });
    graph.on("tap", "node", (event) => ask(event.target.id()));
    graph.on("tap", (event) => { if (event.target === graph) ask(""); });
    filter();
    ask("");
    // At first as wide as the frame, from the target downward: small graphs whole, large ones readable.
    const bounds = graph.nodes().not(".away").boundingBox();
    const level = Math.min(1, (graph.width() - 32) / bounds.w);
    graph.viewport({ zoom: level, pan: { x: graph.width() / 2 - (level * (bounds.x1 + bounds.x2)) / 2, y: 16 - level * bounds.y1 } });
    details.dataset.drawn = "yes";
  };

  const zoom = (factor) => graph.zoom({ level: graph.zoom() * factor, renderedPosition: { x: graph.width() / 2, y: graph.height() / 2 } });
  document.getElementById("explore-in").addEventListener("click", () => zoom(1.25));
  document.getElementById("explore-out").addEventListener("click", () => zoom(0.8));
  document.getElementById("explore-fit").addEventListener("click", () => graph.fit(graph.nodes().not(".away"), 16));
  share.addEventListener("input", filter);
  signs.addEventListener("change", filter);
  list.addEventListener("change", () => ask(list.value));
  document.getElementById("explore-controls").addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => graph && graph.style(look()));
  details.hidden = false;
  details.addEventListener("toggle", () => { if (details.open) start(); });
  // In a notebook's frame it is open from the first, and has no size until the frame is shown.
  if (details.open) new ResizeObserver((_, watch) => { if (details.clientWidth) { watch.disconnect(); start(); } }).observe(details);
})();
