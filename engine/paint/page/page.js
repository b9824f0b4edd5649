"use strict";
// The page of scripts/paint.py. The server keeps the label map and does what is done to it; the page draws a stroke while it
// is under way (the arithmetic of engine/paint/canvas.py, in whole numbers) and shows what comes back.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, values = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...inside);
    return element;
  };

  let session = "";
  let info = null; // what the server says of the scene
  let scene = 0; // counts scenes, so that answers for an earlier one are not shown
  let state = { revision: 0, undo: 0, redo: 0, seed: 0, draws: {}, sliders: {} };
  let ids = null; // labels of the slice, as shown
  let real = null; // its real scan, 16-bit levels by channel
  let elsewhere = 0; // pixels painted in other slices, where they are counted
  let colors = [];
  let slice = 0, label = 1, tool = "brush", saved = true;
  let sent = []; // strokes that the server has not answered
  let stroke = null; // the one under way
  let cursor = null; // of the keyboard, [x, y]
  let seen = { zoom: 1, x: 0.5, y: 0.5 }; // and what is in the middle, in shares of the picture
  let queue = Promise.resolve();
  const panels = new Map();
  const map = $("#map");

  // -- the server ---------------------------------------------------------------------------------------------------

  async function ask(what, body, headers = {}) {
    const response = await fetch(`/api/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Session": session, ...headers },
      body: body instanceof Blob ? body : JSON.stringify(body),
    }).catch(() => null);
    if (!response) throw new Error("the server does not answer: was it ended?");
    if (what === "file" && response.ok) return response.blob();
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  function say(text, bad = false, ...more) {
    const box = $("#message");
    box.replaceChildren(text, ...more);
    box.classList.toggle("bad", bad);
    box.hidden = !text;
  }
  const complain = (error) => say(error.message, true);

  function unpack(text, wide) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return wide ? new Uint16Array(bytes.buffer) : bytes;
  }
  const wide = () => info.labels.length > 256;

  // -- a scene --------------------------------------------------------------------------------------------------------

  function opened(answer) {
    info = answer;
    scene += 1;
    sent = [];
    stroke = cursor = null;
    state = answer;
    saved = true;
    slice = answer.shown ?? Math.floor(info.slices / 2);
    colors = info.labels.map(([, color]) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
    label = Math.min(Math.max(label, 1), info.labels.length - 1);
    const [height, width] = info.size;
    [map.width, map.height] = [width, height];
    map.style.aspectRatio = `${width} / ${height * info.aspect}`;
    const lesions = info.voxel_ml > 0;
    $("h1").textContent = document.title = lesions ? "Paint a lesion, see the scans" : "Paint a label, see the scan";
    if (lesions) $("#opacity").value = 50;
    $("main").classList.toggle("two", info.labels.length === 2);
    $("main").style.setProperty("--shape", width / (height * info.aspect));
    look(1, 0.5, 0.5);
    fillCases();
    fillClasses();
    fillBackdrops();
    fillPanels();
    $("#slice").max = info.slices - 1;
    $("#slices").hidden = info.slices < 2;
    $("[data-save=volumes]").disabled = !info.volumes;
    const resamples = info.panels.some((panel) => panel.resamples);
    $("#draw-next").parentElement.hidden = $("#draw-now").hidden = !resamples;
    say(info.notes.join(" · "));
    return go(slice).then(() => { if (lesions) fit(real[info.panels[0].channels.length - 1]); });
  }

  function fit(levels) { // the zoom at which what a scan shows fills the picture
    const rows = [], columns = [];
    levels.forEach((level, i) => {
      if (level < 6500) return; // a tenth of white
      rows.push(Math.floor(i / map.width));
      columns.push(i % map.width);
    });
    const range = (of) => of.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [of[0] ?? 0, of[0] ?? 0]);
    const [[top, bottom], [left, right]] = [range(rows), range(columns)];
    const share = Math.max((bottom - top + 9) / map.height, (right - left + 9) / map.width);
    look(Math.min(4, Math.max(1, 1 / share)), (left + right + 1) / 2 / map.width, (top + bottom + 1) / 2 / map.height);
  }

  async function go(to) {
    const mine = scene;
    slice = Math.min(Math.max(to, 0), info.slices - 1);
    const asked = slice;
    $("#slice").value = slice;
    $("#slice-now").value = `${slice + 1}/${info.slices}`;
    try {
      const answer = await ask("slice", { slice });
      if (mine !== scene || asked !== slice) return;
      ids = unpack(answer.ids, wide());
      elsewhere = answer.elsewhere;
      real = answer.real && answer.real.map((channel) => unpack(channel, true));
      again();
      draw();
      if (!state.revision && at([map.width >> 1, map.height >> 1])) choose(at([map.width >> 1, map.height >> 1]));
      showState();
      refresh();
    } catch (error) {
      complain(error);
    }
  }

  function fillCases() {
    const name = (id, split, n) => `${id} (${split}, ${n} slice${n === 1 ? "" : "s"})`;
    const choices = info.cases.map(([id, split, n]) => make("option", { value: id, textContent: name(id, split, n) }));
    const own = info.cases.some(([id]) => id === info.case), none = info.voxel_ml ? "no lesion" : "an empty map";
    if (!own) choices.unshift(make("option", { value: "", textContent: info.case === "painted" ? none : info.case }));
    if (own || info.case !== "painted") choices.push(make("option", { value: "", textContent: none }));
    $("#case").replaceChildren(...choices);
    $("#case").value = own ? info.case : "";
  }

  function fillClasses() {
    $("#find").hidden = info.labels.length < 16;
    $("#classes").replaceChildren(...info.labels.map(([name, color], i) => {
      const input = make("input", { type: "radio", name: "class", value: i, checked: i === label });
      const swatch = make("i");
      swatch.style.setProperty("--c", color);
      return make("label", { title: name }, input, swatch, name.replaceAll("_", " "), make("small", { textContent: i < 10 ? i : "" }));
    }));
    choose(label);
  }

  function fillBackdrops() {
    const before = $("#backdrop").value;
    const options = [["", "nothing"]];
    info.backdrops.forEach((name, c) => options.push([`real ${c}`, `real ${name}`]));
    info.panels.forEach((panel, p) => panel.channels.forEach(({ name }, c) => options.push([`${p} ${c}`, `${panel.name} ${name}`])));
    $("#backdrop").replaceChildren(...options.map(([value, textContent]) => make("option", { value, textContent })));
    $("#backdrop").value = before && options.some(([value]) => value === before) ? before : info.over;
  }

  function fillPanels() {
    panels.clear();
    $("#panels").replaceChildren();
    $("#panels").classList.toggle("pairs", info.panels.every((panel) => panel.channels.length === 2));
    const [height, width] = info.size;
    let physical = false;
    for (const panel of info.panels) {
      const one = { ...panel, revision: -1, slice: -1, ms: 600, levels: null, figures: [] };
      panel.channels.forEach(({ name, unit }, c) => {
        const canvas = make("canvas", { width, height });
        canvas.style.aspectRatio = `${width} / ${height * info.aspect}`;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `${panel.name}, ${name}`);
        canvas.addEventListener("pointermove", (event) => hover(canvas, event, one, c));
        canvas.addEventListener("pointerleave", () => { note.textContent = ""; });
        const note = make("span");
        const sheet = make("div", { className: "sheet" }, canvas);
        const stage = make("div", { className: "stage" }, sheet, make("i", { className: "bar" }));
        const figure = make("figure", {}, stage, make("figcaption", {}, make("b", { textContent: `${panel.name} · ${name}` }), note));
        one.figures.push({ figure, canvas, note, unit });
        if (c === 0 && panel.sliders.length) figure.append(sliders(panel));
        $("#panels").append(figure);
        physical ||= unit === "HU";
      });
      one.told = make("p", { className: "told", hidden: true });
      $("#panels").append(one.told);
      panels.set(panel.name, one);
    }
    $("#window").hidden = !physical;
    $("#window select").replaceChildren(...Object.keys(info.hu).map((name) => make("option", { textContent: name, value: name })));
  }

  function sliders(panel) {
    const box = make("details", {}, make("summary", { textContent: "acquisition" }));
    for (const [name, low, high, step, unit] of panel.sliders) {
      const now = make("output", { textContent: "run's" });
      const input = make("input", { type: "range", min: low, max: high, step, value: Math.max(0, low), title: unit });
      input.dataset.slider = name;
      input.addEventListener("input", () => { now.textContent = input.value; });
      input.addEventListener("change", () => act({ kind: "slide", run: panel.name, name, value: Number(input.value) }));
      box.append(make("label", {}, name, input, now));
    }
    const reset = make("button", { type: "button", textContent: "as the run has it" });
    reset.addEventListener("click", () => {
      for (const name of Object.keys(state.sliders[panel.name] ?? {})) act({ kind: "slide", run: panel.name, name, value: null });
    });
    box.append(reset);
    return box;
  }

  function showState() {
    $("#undo").disabled = !state.undo;
    $("#redo").disabled = !state.redo;
    $("#noise-now").value = `draw ${state.seed}`;
    $("#noise-back").disabled = state.seed === 0;
    const own = state.draws[label] ?? 0;
    $("#draw-now").value = `${info.labels[label][0].replaceAll("_", " ")}: draw ${own}`;
    $("#draw-back").disabled = own === 0;
    for (const [name, panel] of panels) {
      all("[data-slider]", panel.figures[0].figure).forEach((input) => {
        const value = state.sliders[name]?.[input.dataset.slider];
        input.value = value ?? Math.max(0, input.min);
        input.nextSibling.textContent = value ?? "run's";
      });
    }
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  // Levels of a channel as greys 0..255, in the window that is chosen for HU, else the image's own.
  function greys(levels, { low, high }, unit) {
    let [from, to] = [0, 65535];
    if (unit === "HU") {
      const chosen = info.hu[$("#window select").value];
      if (chosen) [from, to] = chosen.map((value) => (65535 * (value - low)) / (high - low));
    }
    const scale = 255 / (to - from);
    return Uint8ClampedArray.from(levels, (level) => (level - from) * scale);
  }

  function backdrop() {
    const [of, c] = $("#backdrop").value.split(" ");
    if (of === "real") return real && greys(real[c], info.panels[0].windows[c] ?? { low: 0, high: 1 }, info.panels[0].channels[c]?.unit);
    const panel = of && panels.get(info.panels[of].name);
    return panel && panel.levels ? greys(panel.levels[c], panel.windows[c], panel.channels[c].unit) : null;
  }

  function draw() {
    if (!ids) return;
    const under = backdrop();
    const alpha = under ? $("#opacity").value / 100 : 1;
    const picture = new ImageData(map.width, map.height);
    const out = picture.data;
    for (let i = 0; i < ids.length; i++) {
      const grey = under ? under[i] : 0;
      const strength = ids[i] === 0 && under ? 0 : alpha;
      const color = colors[ids[i]];
      for (let k = 0; k < 3; k++) out[4 * i + k] = grey + strength * (color[k] - grey);
      out[4 * i + 3] = 255;
    }
    map.getContext("2d").putImageData(picture, 0, 0);
    showBrush();
    if (!info.voxel_ml) return;
    const here = ids.reduce((count, id) => count + (id > 0), 0);
    $("#load").value = `${Number(((elsewhere + here) * info.voxel_ml).toPrecision(3))} ml painted`;
  }

  function drawPanel(panel) {
    panel.figures.forEach(({ canvas, unit }, c) => {
      const grey = greys(panel.levels[c], panel.windows[c], unit);
      const picture = new ImageData(canvas.width, canvas.height);
      for (let i = 0; i < grey.length; i++) {
        picture.data[4 * i] = picture.data[4 * i + 1] = picture.data[4 * i + 2] = grey[i];
        picture.data[4 * i + 3] = 255;
      }
      canvas.getContext("2d").putImageData(picture, 0, 0);
    });
  }

  // One question at a time for each panel; the answer is the newest state, so strokes in between are never drawn.
  async function refreshPanel(panel) {
    if (panel.asking) return;
    panel.asking = true;
    const mine = scene;
    try {
      while (mine === scene && ((panel.live && panel.revision < state.revision) || panel.slice !== slice)) {
        panel.figures.forEach(({ figure }) => {
          figure.style.setProperty("--ms", `${panel.ms}ms`);
          figure.classList.add("busy");
        });
        const answer = await ask("image", { panel: panel.name, slice });
        if (mine !== scene) return;
        [panel.revision, panel.slice, panel.ms] = [answer.revision, answer.slice, Math.max(answer.ms, 1)];
        panel.levels = answer.channels.map((channel) => unpack(channel, true));
        if (panel.slice === slice) {
          drawPanel(panel);
          if ($("#backdrop").value) draw();
        }
        if (panel.live) panel.figures[0].note.textContent = `${Math.round(answer.ms)} ms`;
        panel.told.textContent = answer.note;
        panel.told.hidden = !answer.note;
        document.documentElement.dataset.drawn = answer.revision;
      }
    } catch (error) {
      if (mine === scene) complain(error);
    } finally {
      panel.asking = false;
      panel.figures.forEach(({ figure }) => figure.classList.remove("busy"));
    }
  }
  const refresh = () => panels.forEach(refreshPanel);

  // -- painting -------------------------------------------------------------------------------------------------------

  // engine/paint/canvas.py, `brushed`
  function segment([ax, ay], [bx, by], size, value) {
    const reach = Math.floor(size / 2), square = size * size;
    const [dx, dy] = [bx - ax, by - ay];
    const length = dx * dx + dy * dy;
    const right = Math.min(map.width - 1, Math.max(ax, bx) + reach);
    const bottom = Math.min(map.height - 1, Math.max(ay, by) + reach);
    for (let y = Math.max(0, Math.min(ay, by) - reach); y <= bottom; y++) {
      for (let x = Math.max(0, Math.min(ax, bx) - reach); x <= right; x++) {
        const along = (x - ax) * dx + (y - ay) * dy;
        let near;
        if (along > 0 && along < length) {
          const across = (x - ax) * dy - (y - ay) * dx;
          near = 4 * across * across <= square * length;
        } else {
          const [px, py] = along <= 0 ? [ax, ay] : [bx, by];
          near = 4 * ((x - px) ** 2 + (y - py) ** 2) <= square;
        }
        if (near) ids[y * map.width + x] = value;
      }
    }
  }

  function again() {
    for (const one of [...sent, ...(stroke ? [stroke] : [])]) {
      if (one.slice !== slice) continue;
      one.points.forEach((point, i) => segment(one.points[Math.max(0, i - 1)], point, one.size, one.label));
    }
  }

  function act(action) {
    const mine = scene;
    saved = false;
    if (action.kind === "stroke") sent.push(action);
    queue = queue.then(async () => {
      if (mine !== scene) return;
      try {
        const answer = await ask("act", action);
        if (mine !== scene) return;
        if (action.kind === "stroke") sent.shift();
        state = answer;
        if (answer.slice !== undefined && answer.slice !== slice && action.kind !== "stroke") return void go(answer.slice);
        if (answer.slice === slice) {
          ids = unpack(answer.ids, wide());
          elsewhere = answer.elsewhere;
          again();
          draw();
        }
        showState();
        refresh();
      } catch (error) {
        sent = [];
        complain(error);
        go(slice);
      }
    });
    return queue;
  }

  function pixel(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const within = (value, n) => Math.min(n + 127, Math.max(-128, Math.floor(value * n)));
    return [within(place[0], canvas.width), within(place[1], canvas.height)];
  }
  const inside = ([x, y]) => x >= 0 && y >= 0 && x < map.width && y < map.height;
  const at = ([x, y]) => ids[y * map.width + x];

  function press(point, pick) {
    if (!ids || !inside(point)) return;
    if (pick) choose(at(point));
    else if (tool === "fill") act({ kind: "fill", slice, label, x: point[0], y: point[1] });
    else {
      stroke = { kind: "stroke", slice, label: tool === "eraser" ? 0 : label, size: Number($("#size").value), points: [point] };
      segment(point, point, stroke.size, stroke.label);
      draw();
    }
  }

  function drag(point) {
    const last = stroke.points.at(-1);
    if ((point[0] === last[0] && point[1] === last[1]) || stroke.points.length >= 20000) return;
    stroke.points.push(point);
    segment(last, point, stroke.size, stroke.label);
  }

  function release() {
    if (!stroke) return;
    const done = stroke;
    stroke = null;
    act(done);
  }

  const fingers = new Map(); // on the map: where each is; one paints, two move and enlarge what is seen
  let hand = null; // where the middle button holds the picture

  map.addEventListener("pointerdown", (event) => {
    if (event.button > 2) return;
    event.preventDefault();
    map.focus({ preventScroll: true });
    cursor = null;
    if (event.isTrusted) map.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (event.button === 1) hand = [event.clientX, event.clientY];
    else if (fingers.size < 2 && event.isPrimary) press(pixel(map, event), event.button === 2 || event.altKey);
    else if (stroke) {
      stroke = null;
      go(slice);
    }
  });
  map.addEventListener("pointermove", (event) => {
    const to = [event.clientX, event.clientY];
    cursor = null;
    if (hand) {
      pin(share(hand), to, seen.zoom);
      hand = to;
    } else if (fingers.size > 1) {
      const [before, apart] = spread();
      const held = share(before);
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, to);
      const [now, further] = spread();
      pin(held, now, (seen.zoom * further) / Math.max(apart, 1));
      return;
    }
    const point = pixel(map, event);
    if (stroke && event.isPrimary) {
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length ? moves : [event]) drag(pixel(map, move));
      draw();
    }
    showBrush(point);
    tell(point);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    map.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      hand = null;
      release();
    });
  }
  map.addEventListener("pointerleave", () => { if (!stroke) showBrush([-999, -999]); });
  map.addEventListener("contextmenu", (event) => event.preventDefault());
  map.addEventListener("wheel", (event) => {
    if (event.ctrlKey) enlarge(event.deltaY < 0 ? 1.25 : 0.8, [event.clientX, event.clientY]);
    else if (info.slices > 1) go(slice + Math.sign(event.deltaY));
    else return;
    event.preventDefault();
  }, { passive: false });
  map.addEventListener("blur", () => { cursor = null; showBrush([-999, -999]); });

  // -- what is seen: the same part of all pictures --------------------------------------------------------------------

  function look(zoom, x, y) {
    const within = (value) => Math.min(Math.max(value, 0.5 / zoom), 1 - 0.5 / zoom);
    seen = { zoom, x: within(x), y: within(y) };
    const style = $("main").style;
    style.setProperty("--zoom", zoom);
    style.setProperty("--x", `${100 * (0.5 - seen.x * zoom)}%`);
    style.setProperty("--y", `${100 * (0.5 - seen.y * zoom)}%`);
    $("#zoom-now").value = `${Number(zoom.toPrecision(3))}×`;
    $("#zoom-out").disabled = zoom <= 1;
    $("#zoom-in").disabled = zoom >= 8;
  }

  function share([x, y]) { // of the picture, at a place of the window
    const box = map.getBoundingClientRect();
    return [(x - box.left) / box.width, (y - box.top) / box.height];
  }

  function pin([px, py], [x, y], zoom) { // this share of the picture comes to that place of the window
    const box = $(".stage").getBoundingClientRect();
    const now = Math.min(8, Math.max(1, zoom));
    look(now, px - ((x - box.left) / box.width - 0.5) / now, py - ((y - box.top) / box.height - 0.5) / now);
  }

  function enlarge(factor, place) { // about a place of the window, else about the brush
    const box = map.getBoundingClientRect();
    const [x, y] = cursor ?? shown;
    const brush = [box.left + ((x + 0.5) / map.width) * box.width, box.top + ((y + 0.5) / map.height) * box.height];
    const frame = $(".stage").getBoundingClientRect();
    const about = place ?? (inside([x, y]) ? brush : [frame.left + frame.width / 2, frame.top + frame.height / 2]);
    pin(share(about), about, seen.zoom * factor);
  }

  function spread() { // middle and distance of two fingers
    const [[ax, ay], [bx, by]] = fingers.values();
    return [[(ax + bx) / 2, (ay + by) / 2], Math.hypot(ax - bx, ay - by)];
  }

  let shown = [-999, -999];
  function showBrush(point = cursor ?? shown) {
    shown = point;
    const brush = $("#brush");
    brush.hidden = !inside(point);
    const size = tool === "fill" ? 1 : Number($("#size").value);
    const side = (n, whole) => `${(100 * n) / whole}%`;
    Object.assign(brush.style, {
      left: side(point[0] + 0.5, map.width), top: side(point[1] + 0.5, map.height),
      width: side(size, map.width), height: side(size, map.height),
    });
  }

  function tell(point) {
    const name = ids && inside(point) ? info.labels[at(point)][0].replaceAll("_", " ") : "";
    $("#where").textContent = name ? `${name} at ${point.join(", ")}` : "\u00a0";
  }

  function hover(canvas, event, panel, c) {
    if (!panel.levels) return;
    const [x, y] = pixel(canvas, event);
    if (!inside([x, y])) return;
    const { low, high } = panel.windows[c];
    const value = low + (panel.levels[c][y * canvas.width + x] / 65535) * (high - low);
    panel.figures[c].note.textContent = `${value.toPrecision(4)} ${panel.channels[c].unit}`;
    tell([x, y]);
  }

  function choose(to) {
    label = to;
    const input = $(`#classes input[value="${label}"]`);
    input.checked = true;
    const box = $("#classes"), row = input.parentElement;
    const near = (now, start, length, room) => Math.min(Math.max(now, start + length - room), start);
    box.scrollTop = near(box.scrollTop, row.offsetTop - box.offsetTop, row.offsetHeight, box.clientHeight);
    box.scrollLeft = near(box.scrollLeft, row.offsetLeft - box.offsetLeft, row.offsetWidth, box.clientWidth);
    showState();
  }

  function take(name) {
    tool = name;
    all("[data-tool]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.tool === name));
    showBrush();
  }

  function resize(by) {
    $("#size").value = Number($("#size").value) + by;
    $("#size-now").value = $("#size").value;
    showBrush();
  }

  // -- controls -------------------------------------------------------------------------------------------------------

  const undo = () => act({ kind: "undo" });
  const redo = () => act({ kind: "redo" });
  const noise = (step) => act({ kind: "noise", seed: Math.max(0, state.seed + step) });
  const resample = (step) => act({ kind: "resample", label, draw: Math.max(0, (state.draws[label] ?? 0) + step) });
  const click = (selector, what) => $(selector).addEventListener("click", what);

  all("[data-tool]").forEach((button) => button.addEventListener("click", () => take(button.dataset.tool)));
  click("#undo", undo);
  click("#redo", redo);
  click("#zoom-in", () => enlarge(1.25));
  click("#zoom-out", () => enlarge(0.8));
  click("#noise-next", () => noise(1));
  click("#noise-back", () => noise(-1));
  click("#draw-next", () => resample(1));
  click("#draw-back", () => resample(-1));
  click("#keys", () => {
    $("#help").hidden = !$("#help").hidden;
    $("#keys").setAttribute("aria-expanded", !$("#help").hidden);
  });
  $("#size").addEventListener("input", () => resize(0));
  $("#slice").addEventListener("input", () => go(Number($("#slice").value)));
  $("#opacity").addEventListener("input", draw);
  $("#backdrop").addEventListener("change", draw);
  $("#window select").addEventListener("change", () => {
    panels.forEach((panel) => panel.levels && drawPanel(panel));
    draw();
  });
  $("#classes").addEventListener("change", (event) => choose(Number(event.target.value)));
  $("#find").addEventListener("input", () => {
    const words = $("#find").value.toLowerCase();
    all("#classes label").forEach((row) => { row.hidden = !row.title.toLowerCase().replaceAll("_", " ").includes(words); });
  });
  $("#case").addEventListener("change", () => {
    const name = $("#case").value;
    if (!leave()) return void fillCases();
    ask("begin", name ? { case: name } : {}).then(opened).catch(complain);
  });
  $("#file").addEventListener("change", async () => {
    const [file] = $("#file").files;
    $("#file").value = "";
    if (!file || !leave()) return;
    say(`reading ${file.name} …`);
    try {
      await opened(await ask("upload", file, { "Content-Type": "application/octet-stream", "X-Name": encodeURIComponent(file.name) }));
    } catch (error) {
      complain(error);
    }
  });

  const leave = () => saved || !state.undo || confirm("Leave what is painted here? It is not saved.");

  all("[data-save]").forEach((button) => button.addEventListener("click", async () => {
    button.disabled = true;
    const slices = info.voxel_ml ? 1 : info.slices; // lesions are painted into the whole scan at once
    const many = button.dataset.save === "volumes" ? slices * [...panels.values()].reduce((sum, one) => sum + one.ms, 0) : 0;
    say(many > 3000 ? `drawing ${slices} slices, about ${Math.ceil(many / 1000)} s …` : "saving …");
    try {
      await queue;
      const { folder, files } = await ask("save", { what: button.dataset.save, slice });
      saved ||= button.dataset.save !== "slice";
      say(`saved in ${folder}: `, false, ...files.map(link));
    } catch (error) {
      complain(error);
    }
    button.disabled = false;
  }));

  function link(name) {
    const anchor = make("a", { href: "#", textContent: name });
    anchor.addEventListener("click", async (event) => {
      event.preventDefault();
      const url = URL.createObjectURL(await ask("file", { name }));
      make("a", { href: url, download: name }).click();
      URL.revokeObjectURL(url);
    });
    return anchor;
  }

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function moveCursor(event) {
    const step = event.shiftKey ? 10 : 1;
    const [dx, dy] = MOVES[event.key];
    const [x, y] = cursor ?? (inside(shown) ? shown : [map.width >> 1, map.height >> 1]);
    cursor = [Math.min(map.width - 1, Math.max(0, x + dx * step)), Math.min(map.height - 1, Math.max(0, y + dy * step))];
    const near = (middle, at) => Math.min(Math.max(middle, at - 0.45 / seen.zoom), at + 0.45 / seen.zoom);
    look(seen.zoom, near(seen.x, cursor[0] / map.width), near(seen.y, cursor[1] / map.height));
    showBrush(cursor);
    tell(cursor);
  }

  const KEYS = {
    b: () => take("brush"), e: () => take("eraser"), f: () => take("fill"), i: () => press(shown, true),
    "[": () => resize(-1), "]": () => resize(1), n: () => noise(1), r: () => resample(1),
    "+": () => enlarge(1.25), "=": () => enlarge(1.25), "-": () => enlarge(0.8), PageUp: () => go(slice - 1), PageDown: () => go(slice + 1),
  };

  document.addEventListener("keydown", (event) => {
    if (!info || /^(SELECT|TEXTAREA)$/.test(event.target.tagName) || event.target.type === "search") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z" && key !== "y") return;
      (key === "y" || event.shiftKey ? redo : undo)();
    } else if (event.altKey) return;
    else if (event.target === map && MOVES[key]) moveCursor(event);
    else if (event.target === map && key === " ") {
      press(cursor ?? shown, false);
      release();
    } else if (/^[0-9]$/.test(key) && Number(key) < info.labels.length) choose(Number(key));
    else if (KEYS[key]) KEYS[key]();
    else return;
    event.preventDefault();
  });

  window.addEventListener("beforeunload", (event) => { if (!saved && state.undo) event.preventDefault(); });

  ask("open", {}, { "X-Token": location.hash.slice(1) })
    .then((answer) => {
      session = answer.session;
      if (!answer.cases.length) return opened(answer);
      return ask("begin", { case: answer.cases[0][0] }).then(opened);
    })
    .then(() => { document.documentElement.dataset.ready = "yes"; })
    .catch(complain);
})();
