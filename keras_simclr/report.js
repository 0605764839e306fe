"use strict";

// The map of a report, drawn from the table of its images: what the table says
// is all that it knows. Names are only ever set as text.

(() => {
  const get = (id) => document.getElementById(id);
  const canvas = get("map"), details = get("images");
  if (!canvas) return;
  const pen = canvas.getContext("2d");
  const tip = get("tip"), status = get("status"), legend = get("legend");
  const search = get("search"), ofClass = get("of-class");
  const withPictures = get("with-pictures");

  // Okabe and Ito's colours, told apart by most; shapes differ, too.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7",
    "#56b4e9", "#b5a900"];
  const SHAPES = ["disc", "square", "up", "diamond", "down", "cross"];
  const FARTHEST = 0.5, CLOSEST = 60;

  const points = [...details.querySelectorAll("tbody tr")].map((row, number) => {
    const [, name, kind, split, likeness] = [...row.cells].map((x) => x.textContent);
    const source = get(`p${number}`);
    const picture = new Image();
    picture.src = source.getAttribute("href");
    const rendering = source.getAttribute("image-rendering") || "auto";
    return {
      row, number, name, kind, split, likeness, picture, rendering,
      text: name.toLowerCase(),
      x: Number(row.dataset.x), y: Number(row.dataset.y),
      group: row.dataset.class === "" ? -1 : Number(row.dataset.class),
      width: Number(source.getAttribute("width")),
      height: Number(source.getAttribute("height")),
    };
  });
  // Where the middle of the map is, and how much larger than the whole.
  const view = { x: 0, y: 0, zoom: 1 };
  let chosen = null, matching = null, isPrinting = false, isAsked = false;

  // --- drawing ---

  const size = () => [canvas.clientWidth, canvas.clientHeight];
  const unit = () => {
    const [width, height] = size();
    return [(width / 2 - 24) * view.zoom, (height / 2 - 24) * view.zoom];
  };
  const onScreen = (point) => {
    const [width, height] = size(), [across, down] = unit();
    return [width / 2 + (point.x - view.x) * across,
      height / 2 - (point.y - view.y) * down];
  };
  const isShown = (point) =>
    (!ofClass || ofClass.value === "" || point.group === Number(ofClass.value))
    && (matching === null || matching.has(point));
  // As large as there is room for, and never too small to make out.
  const pictureSide = () => {
    const [width, height] = size();
    const room = 0.75 * Math.sqrt(width * height / points.length);
    return Math.min(96, Math.max(16, Math.min(40, room)) * Math.sqrt(view.zoom));
  };

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    if (isPrinting) return { ink: "#000", paper: "#fff", faint: "#666" };
    return { ink: value("--ink"), paper: value("--paper"), faint: value("--faint") };
  }

  const colourOf = (group, theme) =>
    group < 0 ? theme.faint : COLOURS[group % COLOURS.length];

  function mark(pen, group, x, y, radius, colour) {
    const shape = group < 0 ? "disc" : SHAPES[group % SHAPES.length];
    const r = radius;
    pen.beginPath();
    if (shape === "disc") pen.arc(x, y, r, 0, 7);
    if (shape === "square") pen.rect(x - r, y - r, 2 * r, 2 * r);
    const corners = {
      up: [[0, -r], [r, r], [-r, r]],
      down: [[0, r], [r, -r], [-r, -r]],
      diamond: [[0, -1.3 * r], [1.3 * r, 0], [0, 1.3 * r], [-1.3 * r, 0]],
      cross: [[-r, -r / 3], [-r / 3, -r / 3], [-r / 3, -r], [r / 3, -r],
        [r / 3, -r / 3], [r, -r / 3], [r, r / 3], [r / 3, r / 3], [r / 3, r],
        [-r / 3, r], [-r / 3, r / 3], [-r, r / 3]],
    }[shape] || [];
    corners.forEach(([dx, dy], n) => pen[n ? "lineTo" : "moveTo"](x + dx, y + dy));
    pen.closePath();
    pen.fillStyle = colour;
    pen.fill();
  }

  function drawPoint(point, theme) {
    const [x, y] = onScreen(point), [width, height] = size();
    const side = pictureSide();
    if (x < -side || y < -side || x > width + side || y > height + side) return;
    pen.globalAlpha = isShown(point) ? 1 : 0.12;
    const colour = colourOf(point.group, theme);
    if (!withPictures.checked || !point.picture.complete) {
      mark(pen, point.group, x, y, 4, colour);
      return;
    }
    const share = side / Math.max(point.width, point.height);
    const w = point.width * share, h = point.height * share;
    pen.imageSmoothingEnabled = point.rendering === "auto" || share < 1;
    pen.drawImage(point.picture, x - w / 2, y - h / 2, w, h);
    if (point.group >= 0) {
      pen.lineWidth = 1.5;
      pen.strokeStyle = colour;
      pen.strokeRect(x - w / 2, y - h / 2, w, h);
      mark(pen, point.group, x + w / 2 - 1, y - h / 2 + 1, 3.5, colour);
    }
  }

  function draw() {
    isAsked = false;
    const ratio = window.devicePixelRatio || 1, [width, height] = size();
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.imageSmoothingQuality = "high";
    const theme = colours();
    pen.fillStyle = theme.paper;
    pen.fillRect(0, 0, width, height);
    const order = [...points].sort((a, b) => isShown(a) - isShown(b));
    order.forEach((point) => drawPoint(point, theme));
    pen.globalAlpha = 1;
    if (chosen) {
      drawPoint(chosen, theme);
      pen.globalAlpha = 1;
      const [x, y] = onScreen(chosen);
      const side = withPictures.checked ? pictureSide() + 4 : 14;
      pen.lineWidth = 3;
      pen.strokeStyle = theme.ink;
      pen.strokeRect(x - side / 2, y - side / 2, side, side);
    }
    canvas.dataset.zoom = view.zoom.toFixed(3);
    placeTip();
  }

  function ask() {
    if (!isAsked) requestAnimationFrame(draw);
    isAsked = true;
  }

  // --- what is pointed at ---

  function placeTip() {
    tip.hidden = !chosen;
    if (!chosen) return;
    const [x, y] = onScreen(chosen), [width, height] = size();
    const beside = x > width / 2 ? x - tip.offsetWidth - 20 : x + 20;
    const below = y > height / 2 ? y - tip.offsetHeight - 20 : y + 20;
    const within = (value, most) => Math.max(0, Math.min(value, most));
    tip.style.left = `${within(beside, width - tip.offsetWidth)}px`;
    tip.style.top = `${within(below, height - tip.offsetHeight)}px`;
  }

  function choose(point) {
    if (point === chosen) return;
    chosen = point;
    if (point) {
      const lines = [point.name, point.kind, point.split,
        point.likeness && `likeness to neighbours ${point.likeness}`];
      const picture = point.picture.cloneNode();
      picture.alt = "";
      picture.style.imageRendering = point.rendering;
      tip.replaceChildren(picture, ...lines.filter(Boolean).map((line) => {
        const span = document.createElement("span");
        span.textContent = line;
        return span;
      }));
      status.textContent = lines.filter(Boolean).join(", ");
    } else {
      status.textContent = "";
    }
    ask();
  }

  function nearestTo(x, y, most) {
    let best = null, least = most;
    for (const point of points.filter(isShown)) {
      const [px, py] = onScreen(point);
      const distance = Math.hypot(px - x, py - y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  function step(dx, dy) {
    const shown = points.filter(isShown);
    if (!chosen || !isShown(chosen)) {
      choose(nearestTo(...size().map((x) => x / 2), Infinity));
      return;
    }
    const [x, y] = onScreen(chosen);
    let best = null, least = Infinity;
    for (const point of shown) {
      const [px, py] = onScreen(point);
      const along = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      const cost = along + 2 * aside;
      if (along > 0.5 && cost < least) [best, least] = [point, cost];
    }
    if (best) show(best);
  }

  function show(point) {
    choose(point);
    const [x, y] = onScreen(point), [width, height] = size();
    if (x < 0 || y < 0 || x > width || y > height) {
      [view.x, view.y] = [point.x, point.y];
      ask();
    }
  }

  // --- zoom and movement ---

  function zoomAt(x, y, factor) {
    const [width, height] = size(), before = unit();
    view.zoom = Math.min(CLOSEST, Math.max(FARTHEST, view.zoom * factor));
    const after = unit();
    view.x += (x - width / 2) * (1 / before[0] - 1 / after[0]);
    view.y -= (y - height / 2) * (1 / before[1] - 1 / after[1]);
    ask();
  }

  function move(dx, dy) {
    const [across, down] = unit();
    view.x -= dx / across;
    view.y += dy / down;
    ask();
  }

  const zoomBy = (factor) => zoomAt(...size().map((x) => x / 2), factor);
  function whole() {
    Object.assign(view, { x: 0, y: 0, zoom: 1 });
    ask();
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(...place(event), Math.exp(-event.deltaY / 400));
  }, { passive: false });

  const down = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    down.set(event.pointerId, place(event));
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), before = down.get(event.pointerId);
    if (!before) {
      choose(nearestTo(...now, Math.max(14, pictureSide() / 2)));
      return;
    }
    down.set(event.pointerId, now);
    if (down.size === 1) {
      move(now[0] - before[0], now[1] - before[1]);
      return;
    }
    const [other] = [...down].filter(([id]) => id !== event.pointerId);
    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const middle = [(now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2];
    move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    zoomAt(...middle, distance(now, other[1]) / distance(before, other[1]));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      down.delete(event.pointerId);
      if (name === "pointerup") {
        choose(nearestTo(...place(event), Math.max(18, pictureSide() / 2)) || chosen);
      }
    });
  }
  canvas.addEventListener("pointerleave", () => { if (!down.size) choose(null); });

  const KEYS = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0),
    ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5),
    0: whole, Escape: () => choose(null),
    Enter: () => {
      if (!chosen) return;
      details.open = true;
      chosen.row.focus();
    },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  get("closer").addEventListener("click", () => zoomBy(1.5));
  get("farther").addEventListener("click", () => zoomBy(1 / 1.5));
  get("whole").addEventListener("click", whole);

  // --- search, classes, the rest of the page ---

  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    matching = wanted === "" ? null
      : new Set(points.filter((point) => point.text.includes(wanted)));
    choose(null);
    status.textContent = matching
      ? `${matching.size} of ${points.length} names hold that. Enter goes from one to the next.`
      : "";
    ask();
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !matching || !matching.size) return;
    const found = [...matching];
    show(found[(found.indexOf(chosen) + 1) % found.length]);
  });
  if (ofClass) ofClass.addEventListener("change", () => { choose(null); ask(); });
  withPictures.addEventListener("change", ask);
  // Figures elsewhere lead to the image on the map, and to its row.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#i"]');
    const point = link && points[Number(link.hash.slice(2))];
    if (!point) return;
    details.open = true;
    show(point);
  });

  if (ofClass) {
    [...ofClass.options].slice(1, 25).forEach((option, group) => {
      const item = document.createElement("li");
      const sample = document.createElement("canvas");
      sample.width = sample.height = 28;
      mark(sample.getContext("2d"), group, 14, 14, 9, COLOURS[group % COLOURS.length]);
      item.append(sample, option.textContent);
      legend.append(item);
    });
  }
  const copy = get("copy");
  if (copy) {
    copy.addEventListener("click", () => {
      get("names").select();
      document.execCommand("copy");
    });
  }

  window.addEventListener("beforeprint", () => { isPrinting = true; draw(); });
  window.addEventListener("afterprint", () => { isPrinting = false; draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ask);
  new ResizeObserver(ask).observe(canvas);
  Promise.allSettled(points.map((point) => point.picture.decode())).then(() => {
    draw();
    canvas.dataset.ready = "true";
  });
})();
