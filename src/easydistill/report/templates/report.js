"use strict";
(() => {
  const figure = document.querySelector("[data-figure]");
  if (!figure) return;
  const points = JSON.parse(document.getElementById("curve").textContent);
  const tip = figure.querySelector(".tip");
  let at = points.length - 1;

  function show(svg, index) {
    at = Math.max(0, Math.min(points.length - 1, index));
    const [left, right, top, floor] = svg.dataset.frame.split(" ").map(Number);
    const [first, last, low, high] = svg.dataset.range.split(" ").map(Number);
    const [step, loss, even, rate, epoch] = points[at];
    const x = left + (step - first) / (last - first || 1) * (right - left);
    const y = floor - (loss - low) / (high - low) * (floor - top);
    const cross = svg.querySelector(".cross"), dot = svg.querySelector(".dot");
    cross.setAttribute("x1", x); cross.setAttribute("x2", x);
    dot.setAttribute("cx", x); dot.setAttribute("cy", y);
    const lines = [`step ${step.toLocaleString("en")}`, `loss ${loss.toFixed(4)}`];
    if ("smoothed" in figure.dataset) lines.push(`smoothed ${even.toFixed(4)}`);
    if (rate !== null) lines.push(`learning rate ${rate.toExponential(2)}`);
    if (epoch !== null) lines.push(`epoch ${epoch.toFixed(2)}`);
    tip.replaceChildren(...lines.map((line) => {
      const row = document.createElement("span");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), home = figure.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const px = box.left - home.left + x * scale;
    const onLeft = px + 14 + tip.offsetWidth > home.width;
    tip.style.left = `${Math.max(0, onLeft ? px - 14 - tip.offsetWidth : px + 14)}px`;
    tip.style.top = `${box.top - home.top + Math.max(top, Math.min(y, floor - 80)) * scale}px`;
  }

  function hide(svg) {
    tip.hidden = true;
    svg.querySelector(".cross").setAttribute("x1", -9);
    svg.querySelector(".cross").setAttribute("x2", -9);
    svg.querySelector(".dot").setAttribute("cx", -9);
  }

  for (const svg of figure.querySelectorAll(".chart")) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const [left, right] = svg.dataset.frame.split(" ").map(Number);
      const [first, last] = svg.dataset.range.split(" ").map(Number);
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const step = first + (x - left) / (right - left) * (last - first);
      let best = 0;
      points.forEach((point, index) => {
        if (Math.abs(point[0] - step) < Math.abs(points[best][0] - step)) best = index;
      });
      show(svg, best);
    });
    svg.addEventListener("pointerleave", () => hide(svg));
    svg.addEventListener("blur", () => hide(svg));
    svg.addEventListener("focus", () => show(svg, at));
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: points.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(svg, to);
    });
  }
})();
