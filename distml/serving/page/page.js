// The page of the endpoint: a picture in, an answer out. Asks v2/repository/index for the models, then speaks
// GET model, POST predict/image and POST explain, nothing else; below models/NAME/ where there are several.
"use strict";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
const LONGEST = 512; // pixels; a larger picture is scaled down before it is sent
const SMALL_BYTES = 256 * 1024; // a smaller file is sent as it is
const SHOWN = 12; // classes with a bar of their own, and all labels that are predicted
const LINES = "A label is predicted where its bar reaches the line. ";
const NUMBERS = 3; // in large type; all are listed below
const NAMED = 30; // classes whose names fit beside the matrix

let names = []; // of the models
let base = ""; // where the chosen one's routes are: models/NAME/ where there are several
let model = null; // what GET model said
let picture = null; // the ImageBitmap shown, null for a drawing
let original = null; // its bytes, while they can be sent as they are
let latest = 0; // number of the newest request; older answers are not shown

/* ---- the key, in memory alone ---- */

let key = "";

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  $("unlock").hidden = answer.status !== 401;
  return answer;
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  if (model) ask(); else getModel();
});

/* ---- the model ---- */

async function getNames() {
  const answer = await request("v2/repository/index", { method: "POST" });
  if (!answer.ok) return;
  names = [...new Set((await answer.json()).map(({ name }) => name))];
  if (names.length < 2) return;
  $("models").replaceChildren(...names.map((name) => element("option", name)));
  $("several").hidden = false;
  $("default").textContent = `Requests that name no model go to ${names[0]}.`;
  choose();
}

function choose() {
  base = `models/${encodeURIComponent($("models").value)}/`;
}

$("models").addEventListener("change", () => {
  choose();
  model = picture = original = null;
  latest += 1; // an answer that is under way is the other model's
  hideReason(false);
  $("said").textContent = "";
  getModel();
});

async function getModel() {
  try {
    if (!names.length) await getNames();
    const asked = base, answer = await request(`${base}model`, { headers: { accept: "application/json" } });
    if (answer.status === 401) {
      $("line").textContent = "";
      verdict(key ? "That key is not valid here." : "This endpoint needs an API key.", "bad");
      $("key").focus();
      return;
    }
    if (!answer.ok) throw new Error((await answer.json()).error);
    const described = await answer.json();
    if (asked !== base) return; // another model was chosen meanwhile
    model = described;
  } catch (error) {
    $("line").textContent = "";
    verdict(`The endpoint has no model yet: ${error.message}`, "bad");
    setTimeout(() => { if (!model) getModel(); }, 5000);
    return;
  }
  const [height, width] = model.shape;
  const scale = Math.max(1, Math.round(336 / Math.max(height, width)));
  canvas.width = width * scale;
  canvas.height = height * scale;
  $("pen").value = Math.round(Math.max(canvas.width, canvas.height) / 40);
  $("seen").width = width;
  $("seen").height = height;
  clear();
  describe();
  drawMatrix();
  verdict("No picture yet.", "quiet");
  fillBars(model.classes.map(() => 0), -1);
}

const FITS = {
  crop: "of which it covers the middle",
  letterbox: "with bars beside it",
  stretch: "without keeping its proportions",
};

const policy = () => model.policy ?? { fit: "stretch", background: [0, 0, 0] };

function shade(colour) {
  const same = (value) => colour.every((part) => part === value);
  return same(0) ? "black" : same(255) ? "white" : `rgb(${colour.join(", ")})`;
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;

/* As `quality.digits`. */
const digits = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? String(Number(value.toPrecision(3))) : value.toFixed(4));

function describe() {
  const { name, version, shape, classes, metrics = {}, what = "classes" } = model;
  const [height, width, channels] = shape;
  const colours = channels === 1 ? "shades of gray" : "colour";
  document.title = `${name} · distml`;
  $("name").textContent = name;
  $("line").textContent = `Version ${version}: ${classes.length} ${classes.length === 1 ? what.replace(/s$/, "") : what}, pictures of ${width} × ${height} in ${colours}`;
  offerChoice();
  const facts = {
    Version: version,
    Run: model.run_id,
    "Test accuracy": metrics.test_accuracy === undefined ? null : percent(metrics.test_accuracy),
    "Validation accuracy": metrics.val_accuracy === undefined ? null : percent(metrics.val_accuracy),
    ...Object.fromEntries(
      ["macro_f1", "mae"].filter((name) => model.target?.kind && `test_${name}` in metrics)
        .map((name) => [`Test ${name.replace("_", "-")}${name === "mae" && classes.length > 1 ? ", in deviations" : ""}`, digits(metrics[`test_${name}`])])),
    "Test loss": metrics.test_loss === undefined ? null : digits(metrics.test_loss),
    Digest: model.sha256?.slice(0, 16),
    Data: model.data_digest?.slice(0, 16),
    Loaded: model.loaded_at ? new Date(model.loaded_at * 1000).toLocaleString() : null,
    "Also loaded": (model.versions ?? []).slice(1).map((other) => other.version).join(", "),
    Rejected: (model.refused ?? []).map((one) => `version ${one.version}: ${one.reason}`).join(" "),
  };
  const list = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
  $("facts").replaceChildren(...list.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
  $("preprocessing").textContent =
    `The endpoint scales every picture to ${width} × ${height} in ${colours}, ${FITS[policy().fit]}; `
    + `transparent parts become ${shade(policy().background)}. Drawings are white on black. Pictures of more than `
    + `${LONGEST} pixels a side are scaled down to that in this browser first.`;
  $("url").textContent = new URL(base || ".", location.href).href;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/* ---- the confusion matrix ---- */

function shape(tag, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function drawMatrix(column = -1) {
  const counts = model.confusion;
  $("confusion").hidden = !counts;
  if (!counts) return;
  const { classes } = model, many = classes.length, named = many <= NAMED;
  const side = named ? 22 : Math.max(3, 480 / many), left = named ? 74 : 2, top = named ? 64 : 2;
  const size = side * many, right = counts.reduce((sum, row, at) => sum + row[at], 0);
  const all = counts.flat().reduce((sum, count) => sum + count, 0);
  $("confusion-caption").textContent =
    `True class by row, predicted class by column, for ${all.toLocaleString()} held-out pictures; ${percent(right / all)} correct.`;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${left + size + (named ? 34 : 2)} ${top + size + 2}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Confusion matrix of ${many} classes. ${worst(counts)}`);
  counts.forEach((row, at) => {
    const total = Math.max(1, row.reduce((sum, count) => sum + count, 0));
    shape("rect", { class: "ground", x: left, y: top + at * side, width: size, height: side - 1 }, svg);
    row.forEach((count, to) => {
      const cell = shape("rect", {
        class: "cell", x: left + to * side, y: top + at * side, width: side - 1, height: side - 1,
        "fill-opacity": Math.sqrt(count / total).toFixed(3), // so that rare mistakes can be seen
      }, svg);
      cell.addEventListener("pointerenter", () => {
        $("cell").textContent = `${classes[at]} predicted as ${classes[to]}: ${count} of ${total}`;
      });
    });
    if (named) {
      shape("text", { x: left - 5, y: top + at * side + side * 0.65, "text-anchor": "end" }, svg)
        .textContent = short(classes[at]);
      const x = left + at * side + side * 0.6, y = top - 5;
      shape("text", { x, y, transform: `rotate(-55 ${x} ${y})` }, svg).textContent = short(classes[at]);
    }
  });
  if (column >= 0) {
    shape("rect", { class: "column", x: left + column * side - 1, y: top - 1, width: side + 1, height: size + 1, rx: 2 }, svg);
  }
  $("matrix").replaceChildren(svg);
  svg.addEventListener("pointerleave", () => { $("cell").textContent = ""; });
}

const short = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

function worst(counts) {
  let most = [0, 0, 0];
  counts.forEach((row, at) => row.forEach((count, to) => {
    if (at !== to && count > most[0]) most = [count, at, to];
  }));
  const [count, at, to] = most;
  return count ? `The most frequent mistake: ${model.classes[at]} predicted as ${model.classes[to]}, ${count} times.` : "";
}

/* ---- the answer ---- */

function verdict(text, kind = "") {
  $("verdict").className = `verdict ${kind}`;
  $("verdict").textContent = text;
}

function fillBars(probabilities, best, shown = SHOWN) {
  let order = probabilities.map((_, label) => label);
  const given = [best].flat(), thresholds = model.target?.thresholds;
  const before = (a, b) => given.includes(b) - given.includes(a) || probabilities[b] - probabilities[a];
  if (order.length > shown) order = order.sort(before).slice(0, Math.max(shown, given.length));
  const list = $("bars");
  while (list.children.length > order.length) list.lastChild.remove(); // another model's
  while (list.children.length < order.length) {
    const item = element("li"), track = element("span", undefined, "track");
    track.append(element("span", undefined, "fill"), element("span", undefined, "threshold"));
    item.append(element("span", undefined, "name"), track, element("span", undefined, "value"));
    list.append(item);
  }
  order.forEach((label, row) => {
    const item = list.children[row], [name, track, value] = item.children;
    item.className = given.includes(label) ? "best" : "";
    item.title = thresholds ? `${model.classes[label]} is predicted from ${percent(thresholds[label])} on` : "";
    track.lastChild.hidden = !thresholds;
    track.lastChild.style.left = `${100 * (thresholds?.[label] ?? 0)}%`;
    track.style.visibility = "";
    name.textContent = model.classes[label];
    name.title = model.classes[label];
    track.firstChild.style.width = `${100 * probabilities[label]}%`;
    value.textContent = best < 0 ? "" : percent(probabilities[label]);
  });
}

async function ask() {
  const number = ++latest;
  const body = await bytes();
  showSeen();
  const began = performance.now();
  let answer, found;
  try {
    answer = await request(`${base}predict/image`, { method: "POST", headers: { "content-type": body.type || "image/png" }, body });
    found = await answer.json();
  } catch (error) {
    if (number === latest) verdict(`The endpoint does not respond: ${error.message}`, "bad");
    return;
  }
  if (number !== latest) return; // a newer picture is on its way
  if (!answer.ok) {
    verdict(`Rejected: ${found.error ?? answer.status}`, "bad");
    hideReason(false);
    $("said").textContent = "";
    fillBars(model.classes.map(() => 0), -1);
    return;
  }
  const first = found.predictions[0];
  showPrediction(first);
  hideReason(true);
  drawMatrix(first.label);
  $("said").textContent =
    `${first.labels ? LINES : precision(first)}Version ${found.model.version} answered in ${Math.round(performance.now() - began)} ms.`;
  if (found.model.version !== model.version) getModelQuietly();
}

// What a prediction holds says how it is shown: one class, several labels, or numbers by name.
function showPrediction({ class: name, label, labels, named, probability, probabilities }) {
  if (named) {
    const texts = Object.entries(named).map(([number, value]) => `${number} ${Number(value.toPrecision(4))}`);
    const more = texts.length > NUMBERS ? `, and ${texts.length - NUMBERS} more` : "";
    verdict(texts.slice(0, NUMBERS).join(", ") + more);
    fillNumbers(Object.values(named));
    return;
  }
  verdict(labels ? labels.join(", ") || "none of the labels" : `${name}, ${percent(probability)}`);
  fillBars(probabilities, labels ? labels.map((one) => model.classes.indexOf(one)) : label);
}

function fillNumbers(values) {
  fillBars(values.map(() => 0), -1, values.length);
  [...$("bars").children].forEach((item, at) => {
    item.children[1].style.visibility = "hidden"; // a number has no share
    item.children[2].textContent = Number(values[at].toPrecision(4));
  });
}

// Covering parts of the picture shows where the answer comes from: POST explain says how much each part counts.
async function explain() {
  const number = latest, body = await bytes();
  $("explain").disabled = $("of").disabled = true;
  let answer, found;
  try {
    const of = $("of").value, query = of ? `?of=${encodeURIComponent(of)}` : "";
    answer = await request(`${base}explain${query}`, { method: "POST", headers: { "content-type": body.type || "image/png" }, body });
    found = await answer.json();
  } catch (error) {
    found = { error: error.message };
  }
  $("explain").disabled = $("of").disabled = false;
  if (number !== latest) return; // a newer picture has been answered
  $("reason").hidden = false;
  $("heat").hidden = !answer?.ok;
  if (!answer?.ok) {
    $("reason-caption").textContent = `Not explained: ${found.error}`;
    return;
  }
  const all = found.influence.flat(), most = Math.max(...all), value = Number(found.output.toPrecision(4));
  drawHeat(found.influence, most);
  $("heat").setAttribute("aria-label", `The picture, red where ${found.of} depends on it`);
  $("reason-caption").textContent = most > 0
    ? `${found.of} is ${value}. Covering the reddest part moves it by ${Number(most.toPrecision(2))}; parts without red do not count for it.`
    : `${found.of} is ${value}, and covering no single part moves it.`;
}

function drawHeat(influence, most) {
  const rows = influence.length, columns = influence[0].length, seen = $("seen"), heat = $("heat");
  const small = document.createElement("canvas"), scale = Math.max(1, Math.ceil(336 / Math.max(seen.width, seen.height)));
  [small.width, small.height] = [columns, rows];
  [heat.width, heat.height] = [seen.width * scale, seen.height * scale];
  const context = small.getContext("2d"), on = heat.getContext("2d");
  influence.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = `rgb(220 40 30 / ${most > 0 ? (0.75 * value / most).toFixed(3) : 0})`;
    context.fillRect(x, y, 1, 1);
  }));
  on.imageSmoothingEnabled = false;
  on.drawImage(seen, 0, 0, heat.width, heat.height);
  on.imageSmoothingEnabled = true;
  on.drawImage(small, 0, 0, heat.width, heat.height);
}

function hideReason(answered) {
  $("why").hidden = !answered;
  $("reason").hidden = true;
}

$("explain").addEventListener("click", explain);
$("of").addEventListener("change", () => { if (!$("reason").hidden) explain(); });

const PREDICTED = { classification: "the predicted class", multilabel: "the most probable label" };

function offerChoice() {
  const preset = PREDICTED[model.target?.kind ?? "classification"], chosen = $("of").value;
  const options = model.classes.map((name) => Object.assign(element("option", name), { value: name }));
  if (preset) options.unshift(Object.assign(element("option", preset), { value: "" }));
  $("of").replaceChildren(...options);
  $("of").value = chosen;
  if ($("of").selectedIndex < 0) $("of").selectedIndex = 0; // of another model
  $("choice").hidden = model.classes.length < 2;
}

function precision({ class: name, label }) {
  const column = model.confusion?.map((row) => row[label]);
  const all = column?.reduce((sum, count) => sum + count, 0);
  return all ? `Of ${all.toLocaleString()} held-out pictures predicted as ${name}, ${column[label].toLocaleString()} were. ` : "";
}

async function getModelQuietly() { // another version answers now: after a promotion
  const asked = base, answer = await request(`${base}model`);
  if (!answer.ok || asked !== base) return;
  model = await answer.json();
  describe();
  drawMatrix();
}

async function bytes() {
  if (original && !$("invert").checked) return original;
  const source = picture ? scaled(picture, LONGEST) : canvas;
  const sent = document.createElement("canvas");
  sent.width = source.width;
  sent.height = source.height;
  const context = sent.getContext("2d");
  context.fillRect(0, 0, sent.width, sent.height);
  context.drawImage(source, 0, 0);
  invert(context, 0, 0, sent.width, sent.height);
  return new Promise((resolve) => sent.toBlob(resolve, "image/png"));
}

function invert(context, x, y, width, height) { // Safari knows no canvas filters
  if (!$("invert").checked) return;
  blend(context, "difference", "#fff", x, y, width, height);
}

function blend(context, mode, colour, x, y, width, height) {
  context.save();
  context.globalCompositeOperation = mode;
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  context.restore();
}

function scaled(bitmap, longest) {
  const factor = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  const made = document.createElement("canvas");
  made.width = Math.max(1, Math.round(bitmap.width * factor));
  made.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = made.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, made.width, made.height);
  return made;
}

// Which part of a picture goes where, as distml.data.image.placement has it.
function placement(given, columns, rows) {
  const wider = given.width * rows > given.height * columns;
  let [width, height] = [given.width, given.height], [across, down] = [columns, rows];
  if (policy().fit === "crop") {
    if (wider) width = Math.max(1, Math.round(height * columns / rows));
    else height = Math.max(1, Math.round(width * rows / columns));
  } else if (policy().fit === "letterbox") {
    if (wider) down = Math.max(1, Math.round(height * columns / width));
    else across = Math.max(1, Math.round(width * rows / height));
  }
  const middle = (whole, part) => Math.floor((whole - part) / 2);
  return [
    middle(given.width, width), middle(given.height, height), width, height,
    middle(columns, across), middle(rows, down), across, down,
  ];
}

function showSeen() {
  const [height, width, channels] = model.shape, context = $("seen").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = `rgb(${policy().background.join(" ")})`;
  context.fillRect(0, 0, width, height);
  context.drawImage(picture ?? canvas, ...placement(picture ?? canvas, width, height));
  if (channels === 1) blend(context, "saturation", "#808080", 0, 0, width, height);
  invert(context, 0, 0, width, height);
}

/* ---- a picture from outside ---- */

async function take(file) {
  if (!file || !model) return;
  let found;
  try {
    found = await createImageBitmap(file);
  } catch {
    verdict(`${file.name || "That"} is not a picture this browser can read.`, "bad");
    return;
  }
  picture = found;
  const fits = Math.max(found.width, found.height) <= LONGEST && file.size <= SMALL_BYTES;
  original = fits ? file : null;
  show();
  canvas.setAttribute("aria-label", `Picture ${file.name || "from the clipboard"}, ${found.width} by ${found.height}`);
  await ask();
}

function show() {
  pen.save();
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const factor = Math.min(canvas.width / picture.width, canvas.height / picture.height);
  const [width, height] = [picture.width * factor, picture.height * factor];
  pen.imageSmoothingEnabled = factor < 1;
  const [x, y] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  pen.drawImage(picture, x, y, width, height);
  invert(pen, x, y, width, height);
  pen.restore();
  $("hint").hidden = true;
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
$("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});
$("invert").addEventListener("change", () => {
  if (picture) show();
  if (picture || drawn) ask();
});

/* ---- drawing ---- */

let drawn = false, last = null, timer = 0;
const cursor = { x: 0.5, y: 0.5, down: false };

function clear() {
  picture = original = last = null;
  drawn = cursor.down = false;
  latest++;
  clearTimeout(timer);
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  $("hint").hidden = false;
  canvas.setAttribute("aria-label", "Drawing area, empty. Arrow keys move the pen, space draws.");
  showCursor();
  if (!model) return;
  verdict("No picture yet.", "quiet");
  hideReason(false);
  $("said").textContent = "";
  fillBars(model.classes.map(() => 0), -1);
  drawMatrix();
  showSeen();
}

function stroke(to) {
  if (picture) clear();
  const from = last ?? to;
  pen.strokeStyle = "#fff";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = Number($("pen").value) * Math.max(canvas.width, canvas.height) / 168;
  pen.beginPath();
  pen.moveTo(from.x * canvas.width, from.y * canvas.height);
  pen.lineTo(to.x * canvas.width, to.y * canvas.height + 0.01); // a point is a line, too
  pen.stroke();
  last = to;
  if (!drawn) canvas.setAttribute("aria-label", "Drawing. Arrow keys move the pen, space draws.");
  drawn = true;
  $("hint").hidden = true;
  clearTimeout(timer);
  timer = setTimeout(ask, 200); // while the hand pauses
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

canvas.addEventListener("pointerdown", (event) => {
  if (!model || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  last = null;
  stroke(at(event));
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) stroke(at(one));
});
canvas.addEventListener("pointerup", () => { last = null; });

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!model) return;
  if (event.key === " ") {
    cursor.down = !cursor.down;
    last = null;
    if (cursor.down) stroke({ x: cursor.x, y: cursor.y });
  } else if (event.key in STEPS) {
    const [x, y] = STEPS[event.key], step = event.shiftKey ? 0.1 : 0.025;
    cursor.x = Math.min(1, Math.max(0, cursor.x + x * step));
    cursor.y = Math.min(1, Math.max(0, cursor.y + y * step));
    if (cursor.down) stroke({ x: cursor.x, y: cursor.y });
  } else if (event.key === "Delete" || event.key === "Escape") {
    clear();
  } else return;
  event.preventDefault();
  showCursor(true);
});
canvas.addEventListener("focus", () => showCursor(canvas.matches(":focus-visible")));
canvas.addEventListener("blur", () => showCursor(false));

function showCursor(shown = !$("cursor").hidden) {
  $("cursor").hidden = !shown;
  $("cursor").className = cursor.down ? "down" : "";
  $("cursor").style.left = `${100 * cursor.x}%`;
  $("cursor").style.top = `${100 * cursor.y}%`;
}

$("clear").addEventListener("click", clear);
getModel();
