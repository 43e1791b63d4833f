"use strict";
// Kubeflow shows the page in a frame that has no address: there a link to a part would load an empty page (KFP 2.17).
if (window !== window.parent) {
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const part = document.getElementById(link.hash.slice(1));
      part.scrollIntoView();
      part.tabIndex = -1;  // the next press of Tab goes on from here
      part.focus({ preventScroll: true });
    });
  }
}

// Sort a table by the column whose heading is pressed: numbers by value, absent ones last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const keyed = [...body.rows].map((row) => [value(row), row]);
    const numeric = keyed.every(([v]) => v === "" || !Number.isNaN(Number(v)));
    keyed.sort(([a], [b]) => {
      if (numeric && (a === "" || b === "")) return (a === "") - (b === "");
      return sign * (numeric ? a - b : a.localeCompare(b));
    });
    body.append(...keyed.map(([, row]) => row));
  }));
  const search = document.querySelector(`input[data-table="${table.id}"]`);
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}

// The three-dimensional point clouds: dragged, turned by the slider or the arrow keys, all together.
const cloud = document.getElementById("cloud");
if (cloud) {
  const { kind, places } = JSON.parse(cloud.textContent);
  const canvases = [...document.querySelectorAll("canvas[data-model]")];
  const slider = document.getElementById("turn");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let yaw = 0.6, pitch = 0.35, due = false;

  function draw(canvas) {
    const size = canvas.clientWidth * devicePixelRatio;
    if (!size) return;
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const css = getComputedStyle(document.documentElement);
    const colours = ["blue", "orange", "green", "purple", "red"].map((name) => css.getPropertyValue("--" + name));
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const points = places[canvas.dataset.model].map(([x, y, z], k) => {
      const across = x * cy + z * sy, away = z * cy - x * sy;
      return [across, y * cp - away * sp, y * sp + away * cp, kind[k]];
    });
    points.sort((a, b) => b[2] - a[2]);
    for (const [x, y, away, k] of points) {
      const near = 2600 / (2600 + away), scale = size / 2900 * near;
      const [px, py, r] = [size / 2 + x * scale, size / 2 - y * scale, size / 75 * near];
      context.globalAlpha = Math.min(1, 0.35 + 0.55 * (near - 0.6));
      context.fillStyle = colours[(k >> 1) % 5];
      context.beginPath();
      if (k % 2) {
        context.moveTo(px, py - r); context.lineTo(px + r, py + r * 0.8); context.lineTo(px - r, py + r * 0.8);
      } else context.arc(px, py, r * 0.8, 0, 7);
      context.fill();
    }
  }
  function redraw() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; canvases.forEach(draw); });
  }
  function turned(dx, dy) {
    yaw += dx;
    pitch = Math.max(-1.5, Math.min(1.5, pitch + dy));
    slider.value = String(Math.round(((yaw * 180 / Math.PI) % 360 + 360) % 360));
    redraw();
  }
  for (const canvas of canvases) {
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) turned(event.movementX / 120, event.movementY / 120);
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (step) { event.preventDefault(); turned(...step); }
    });
  }
  slider.addEventListener("input", () => { yaw = slider.value * Math.PI / 180; redraw(); });
  dark.addEventListener("change", redraw);
  addEventListener("resize", redraw);
  redraw();
}
