"use strict";
// Sorting the tables and the case browser need a script, and old browsers to print what is folded. All else is plain HTML.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // -- folded parts: all are printed; one that holds what an address names is opened ------------------------------

  const opened = (element) => {
    for (let fold = element?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  };
  const follow = () => opened(document.getElementById(decodeURIComponent(location.hash.slice(1))));
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => all("details").forEach((fold) => (fold.open = true)));
  follow();

  // -- tables: a click on a heading sorts the rows, missing values always last ------------------------------------

  function sortable(table) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      if (!head.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = head.dataset.better === "higher" ? "descending" : "ascending";
        const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        sort(table.tBodies[0], column, head.dataset.sort === "number", order === "ascending" ? 1 : -1);
      });
    });
  }

  function sort(body, column, numbers, sign) {
    const value = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.v ?? (numbers ? "" : cell.textContent.trim());
      return text === "" ? null : numbers ? Number(text) : text.toLowerCase();
    };
    const rows = [...body.rows].map((row) => ({ row, v: value(row) }));
    rows.sort((a, b) => {
      if (a.v === null || b.v === null) return (a.v === null) - (b.v === null);
      return sign * (numbers ? a.v - b.v : a.v.localeCompare(b.v, "en", { numeric: true }));
    });
    body.append(...rows.map(({ row }) => row));
  }

  all("table.sortable").forEach(sortable);

  // -- case browser -----------------------------------------------------------------------------------------------

  const box = $("#browser");
  const source = $("#browser-data");
  if (!box || !source) return;
  const meta = JSON.parse(source.textContent);
  const field = (name) => $(`[name=${name}]`, box);
  const state = { case: 0, channel: 0, slice: 0, window: 0, stacks: null };
  let request = 0;

  // A line of a stack is a slice, a WebP picture without loss (evaluation/report/volumes.py).
  async function unpack(id, [height, width], slices) {
    const out = new Uint8Array(height * width * slices);
    const lines = $(`#stack-${id}`).textContent.split("\n");
    await Promise.all(lines.map(async (line, s) => {
      const picture = new Image();
      picture.src = `data:image/webp;base64,${line}`;
      await picture.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [width, height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      const { data } = context.getImageData(0, 0, width, height);
      for (let i = 0; i < height * width; i++) out[s * height * width + i] = data[4 * i];
    }));
    return out;
  }

  // 256 physical values of the codes, linear between the knots.
  function lookup(knots) {
    const values = new Float32Array(256);
    for (let k = 1; k < knots.length; k++) {
      const [a, low] = knots[k - 1];
      const [b, high] = knots[k];
      for (let code = a; code <= b; code++) values[code] = low + ((high - low) * (code - a)) / (b - a);
    }
    return values;
  }

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const colors = meta.labels.map((label) => rgb(label.color));
  const stops = meta.stops.map(rgb);

  // Colour of a difference, t from 0 (negative end) to 1.
  function diverging(t) {
    const place = Math.min(1, Math.max(0, t)) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(place));
    return stops[i].map((from, c) => from + (stops[i + 1][c] - from) * (place - i));
  }

  const current = () => meta.cases[state.case];

  async function load() {
    const mine = ++request;
    const { size, slices, knots } = current();
    const id = (what) => unpack(`${state.case}-${what}`, size, slices.length);
    const sources = [...Array(1 + meta.methods.length).keys()];
    const [label, ...images] = await Promise.all([id("label"), ...sources.map((s) => id(`${state.channel}-${s}`))]);
    if (mine !== request) return; // another case was chosen meanwhile
    state.stacks = { label, images, values: lookup(knots[state.channel]) };
    draw();
  }

  function display() {
    const choice = meta.channels[state.channel].windows[state.window];
    return choice ? choice.range : current().windows[state.channel];
  }

  function draw() {
    if (!state.stacks) return;
    const { size, slices, labels, limits, aspect } = current();
    const [height, width] = size;
    const { label, images, values } = state.stacks;
    const start = state.slice * height * width;
    const [low, high] = display();
    const limit = limits[state.channel];
    const alpha = field("overlay").checked ? Number(field("opacity").value) / 100 : 0;
    const background = labels.indexOf(0);
    for (const canvas of all("canvas", box)) {
      const [what, method] = canvas.dataset.what.split("-");
      canvas.width = width;
      canvas.height = height;
      canvas.style.setProperty("--aspect", aspect);
      canvas.style.imageRendering = what === "label" ? "pixelated" : "auto";
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(width, height);
      const image = images[what === "generated" ? 1 + Number(method) : 0];
      const fake = what === "difference" ? images[1 + Number(method)] : null;
      const tint = what === "real" || what === "generated" ? alpha : 0;
      for (let i = 0, o = 0; i < height * width; i++, o += 4) {
        const id = label[start + i];
        let color;
        if (what === "label") color = colors[labels[id]];
        else if (fake) color = diverging((values[fake[start + i]] - values[image[start + i]]) / limit / 2 + 0.5);
        else {
          const grey = 255 * Math.min(1, Math.max(0, (values[image[start + i]] - low) / (high - low)));
          const over = colors[labels[id]];
          color = tint && id !== background ? over.map((c) => grey + (c - grey) * tint) : [grey, grey, grey];
        }
        pixels.data[o] = color[0];
        pixels.data[o + 1] = color[1];
        pixels.data[o + 2] = color[2];
        pixels.data[o + 3] = 255;
      }
      context.putImageData(pixels, 0, 0);
    }
    field("slice").value = state.slice;
    const index = slices[state.slice];
    field("position").value = `slice ${index} (${state.slice + 1}/${slices.length})`;
    field("slice").setAttribute("aria-valuetext", `slice ${index}`);
    legends(low, high, limit);
  }

  function legends(low, high, limit) {
    const unit = meta.channels[state.channel].unit;
    $(".readout", box).textContent ||= "Point at a pixel to read its values.";
    const text = { low: short(low), high: `${short(high)} ${unit}`, minus: short(-limit), plus: `+${short(limit)} ${unit}` };
    for (const [what, value] of Object.entries(text)) $(`.scales [data-what=${what}]`, box).textContent = value;
    const { size, labels } = current();
    const length = size[0] * size[1];
    const present = new Set(state.stacks.label.subarray(state.slice * length, (state.slice + 1) * length));
    const keys = [...present].sort((a, b) => a - b).map((id) => {
      const entry = document.createElement("span");
      const square = document.createElement("i");
      square.className = "key";
      square.style.setProperty("--c", meta.labels[labels[id]].color);
      entry.append(square, meta.labels[labels[id]].name);
      return entry;
    });
    $("[data-what=labels]", box).replaceChildren(...keys);
  }

  const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

  function options(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
    select.closest("label").hidden = names.length < 2;
  }

  function showCase(number, slice) {
    state.case = number;
    state.stacks = null;
    const { slices } = current();
    state.slice = slice ?? Math.floor(slices.length / 2);
    field("case").value = number;
    field("slice").max = slices.length - 1;
    return load();
  }

  function showChannel(number) {
    state.channel = number;
    state.window = 0;
    field("channel").value = number;
    options(field("window"), meta.channels[number].windows.map(({ name, range }) => `${name} (${range.join(" to ")})`));
  }

  function go(slice) {
    state.slice = Math.min(current().slices.length - 1, Math.max(0, slice));
    draw();
  }

  function read(event) {
    const canvas = event.target.closest("canvas");
    if (!canvas || !state.stacks) return;
    const [height, width] = current().size;
    const frame = canvas.getBoundingClientRect();
    const x = Math.min(width - 1, Math.floor(((event.clientX - frame.left) / frame.width) * width));
    const y = Math.min(height - 1, Math.floor(((event.clientY - frame.top) / frame.height) * height));
    if (x < 0 || y < 0) return;
    const i = (state.slice * height + y) * width + x;
    const [real, ...fakes] = state.stacks.images.map((image) => state.stacks.values[image[i]]);
    const told = fakes.map((fake, m) => `${meta.methods[m]} ${short(fake)} (${fake > real ? "+" : ""}${short(fake - real)})`);
    const name = meta.labels[current().labels[state.stacks.label[i]]].name;
    const unit = meta.channels[state.channel].unit;
    $(".readout", box).textContent = `${name}: real ${short(real)}, ${told.join(", ")} ${unit}`;
  }

  const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -1e6, End: 1e6 };
  const viewer = $(".viewer", box);
  viewer.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    go(state.slice + STEPS[event.key]);
  });
  viewer.addEventListener("pointerdown", () => viewer.focus({ preventScroll: true }));
  viewer.addEventListener("pointermove", read);
  viewer.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== viewer || event.ctrlKey) return; // the page scrolls until the viewer was clicked
      event.preventDefault();
      go(state.slice + (event.deltaY > 0 ? 1 : -1));
    },
    { passive: false },
  );
  field("slice").addEventListener("input", (event) => go(Number(event.target.value)));
  field("previous").addEventListener("click", () => go(state.slice - 1));
  field("next").addEventListener("click", () => go(state.slice + 1));
  field("case").addEventListener("change", (event) => showCase(Number(event.target.value)));
  field("channel").addEventListener("change", (event) => {
    showChannel(Number(event.target.value));
    state.stacks = null;
    load();
  });
  field("window").addEventListener("change", (event) => {
    state.window = Number(event.target.value);
    draw();
  });
  for (const name of ["overlay", "opacity"]) field(name).addEventListener("input", draw);

  for (const button of all("button.show")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const number = meta.cases.findIndex(({ id }) => id === button.dataset.case);
      const slice = meta.cases[number].slices.indexOf(Number(button.dataset.slice));
      showChannel(Number(button.dataset.channel));
      showCase(number, slice);
      opened(box);
      box.scrollIntoView({ block: "center" });
      viewer.focus({ preventScroll: true });
    });
  }

  options(field("case"), meta.cases.map(({ id }) => id));
  options(field("channel"), meta.channels.map(({ name }) => name));
  showChannel(0);
  box.hidden = false;
  const start = () => request || showCase(0).then(() => (document.documentElement.dataset.ready = "1"));
  box.closest("details").addEventListener("toggle", start); // not before anybody looks
})();
