"use strict";
// Attention patterns and coloured text by CircuitsVis, drawn when they are asked for.
(() => {
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const details = document.getElementById("look");
  // CircuitsVis puts the tokens of a coloured text into the page as markup: what is text has to be escaped before.
  const escaped = data.tokens.map((token) => token.replace(/&/g, "&amp;").replace(/</g, "&lt;"));
  // The largest |score| gets the part of its colour that black text is readable on.
  const limit = (Math.max(...data.heat.map(Math.abs)) || 1) / data.part;

  const draw = () => {
    if (details.dataset.drawn) return;
    const colours = { positiveColor: data.pos, negativeColor: data.neg };
    CircuitsVis.render("look-heat", CircuitsVis.ColoredTokens, {
      tokens: escaped, values: data.heat, minValue: -limit, maxValue: limit, ...colours });
    CircuitsVis.render("look-heads", CircuitsVis.AttentionHeads, {
      tokens: data.tokens, attention: data.patterns, attentionHeadNames: data.heads, minValue: -1, maxValue: 1,
      maskUpperTri: false, ...colours }); // nothing is masked: weights on later tokens are 0, and white
    details.dataset.drawn = "yes";
  };
  details.hidden = false;
  details.addEventListener("toggle", () => { if (details.open) draw(); });
})();
