const data = JSON.parse(document.getElementById("data").textContent);
const KEY = `anomalib-uniad review ${data.key}`;
const KINDS = [["good", "good"], ["defective", "defective"], ["", "without label"]];
const PAGE = 60; // images that are shown at a time
const SIDE = 10; // pixels beside the plot, half of the slider's thumb

const groups = data.groups.map((group) => ({
  ...group,
  title: group.everywhere ? "all products" : group.name,
  first: group.threshold,
  images: group.images.map(([number, path, score, label, picture, likeName, like]) => ({ number, path, score, label, first: label, picture, likeName, like })),
}));
let group = groups[0];
let order = []; // images of the group that are shown, nearest to the threshold first
let limit = PAGE;
let enlarged = null; // the image in the dialog
const cards = new Map(); // image -> its elements

const $ = (id) => document.getElementById(id);
const short = (number) => (number === null ? "none" : Number(number.toPrecision(4)).toString());
const isAnomalous = (of, image) => (of.threshold === null ? null : image.score > of.threshold);

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/* What a person has changed, kept by the browser. */

function keep() {
  const labels = groups.flatMap((one) => one.images.filter((image) => image.label !== image.first));
  const state = {
    thresholds: groups.map((one) => one.threshold),
    labels: labels.map((image) => [image.number, image.label]),
  };
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    $("forgets").hidden = false;
  }
}

function restore() {
  try {
    const state = JSON.parse(localStorage.getItem(KEY));
    if (!state) return;
    const labels = new Map(state.labels);
    groups.forEach((one, index) => {
      one.threshold = state.thresholds[index];
      for (const image of one.images) image.label = labels.get(image.number) ?? image.label;
    });
  } catch {
    $("forgets").hidden = false;
  }
}

/* Decisions. */

function count(of) {
  const found = { good: 0, defective: 0, unlabelled: 0, falseAlarms: 0, missed: 0, alarms: 0 };
  for (const image of of.images) {
    const anomalous = isAnomalous(of, image);
    found[image.label || "unlabelled"] += 1;
    if (image.label === "good" && anomalous) found.falseAlarms += 1;
    if (image.label === "defective" && anomalous === false) found.missed += 1;
    if (!image.label && anomalous) found.alarms += 1;
  }
  return found;
}

function share(of, part, whole) {
  if (of.threshold === null) return "no threshold";
  return whole ? `${part} of ${whole} (${((100 * part) / whole).toFixed(1)} %)` : "–";
}

const sharesOf = (of, found) => [share(of, found.falseAlarms, found.good), share(of, found.missed, found.defective)];

function isWrong(of, image) {
  const anomalous = isAnomalous(of, image);
  return (image.label === "good" && anomalous === true) || (image.label === "defective" && anomalous === false);
}

function setThreshold(value) {
  if (!(value > 0 && value < Infinity)) return;
  group.threshold = value;
  keep();
  update();
}

function setLabel(image, label) {
  image.label = label;
  keep();
  update();
}

/* The scale of the plot and the slider: logarithmic where scores differ widely. */

function scaleOf(of) {
  const values = [...of.images.map((image) => image.score), of.threshold, of.first].filter((value) => value !== null);
  const least = values.reduce((a, b) => Math.min(a, b));
  const most = values.reduce((a, b) => Math.max(a, b));
  const isLog = least > 0 && most > 10 * least;
  const into = isLog ? Math.log : (value) => value;
  const back = isLog ? Math.exp : (value) => value;
  const room = 0.03 * (into(most) - into(least)) || Math.abs(least) / 10 || 1;
  const low = isLog || least <= 0 ? into(least) - room : Math.max(least - room, least / 2);
  const high = into(most) + room;
  return {
    low: back(low),
    high: back(high),
    isLog,
    part: (value) => (value > 0 || !isLog ? Math.min(1, Math.max(0, (into(value) - low) / (high - low))) : 0),
    value: (part) => back(low + part * (high - low)),
  };
}

function ticksOf(scale) {
  if (scale.isLog) {
    const all = [];
    for (let power = Math.floor(Math.log10(scale.low)); power <= Math.log10(scale.high); power += 1)
      for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
    return all.filter((value) => value >= scale.low && value <= scale.high);
  }
  const rough = (scale.high - scale.low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((digit) => digit * power >= rough) ?? 10);
  const ticks = [];
  for (let index = Math.ceil(scale.low / step); index * step <= scale.high; index += 1) ticks.push(index * step);
  return ticks;
}

/* Drawing. */

function draw(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function drawPlot() {
  const width = Math.max(200, $("plot").clientWidth);
  const scale = scaleOf(group);
  const x = (value) => SIDE + scale.part(value) * (width - 2 * SIDE);
  const bins = Math.max(10, Math.round((width - 2 * SIDE) / 12));
  const wide = (width - 2 * SIDE) / bins;
  const lane = 58;
  const lanes = KINDS.map(([kind, word]) => [kind, word, group.images.filter((image) => image.label === kind)]);
  const used = lanes.filter(([, , images]) => images.length);
  const height = used.length * lane + 14;
  const svg = draw("svg", { width, height: height + 20, role: "img", "aria-label": "histogram of scores" });
  used.forEach(([kind, word, images], index) => {
    const base = 14 + (index + 1) * lane;
    const counts = new Array(bins).fill(0);
    for (const image of images) counts[Math.min(bins - 1, Math.floor(scale.part(image.score) * bins))] += 1;
    const highest = Math.max(...counts);
    if (kind && group.threshold !== null) {
      const [from, to] = kind === "good" ? [x(group.threshold), width] : [0, x(group.threshold)];
      svg.append(draw("rect", { class: "zone", x: from, y: base - lane + 4, width: Math.max(0, to - from), height: lane - 4 }));
    }
    counts.forEach((number, bin) => {
      if (!number) return;
      const tall = Math.max(3, ((lane - 22) * number) / highest);
      const place = { x: SIDE + bin * wide + 1, y: base - tall, width: wide - 2, height: tall, class: kind || "none" };
      const bar = draw("rect", place);
      bar.append(draw("title", {}, `${number} ${word}`));
      svg.append(bar);
    });
    svg.append(draw("line", { class: "base", x1: 0, x2: width, y1: base, y2: base }));
    svg.append(draw("text", { x: 2, y: base - lane + 16 }, `${images.length} ${word}`));
  });
  let end = -Infinity;
  for (const tick of ticksOf(scale)) {
    if (x(tick) < end + 34 || x(tick) < 14 || x(tick) > width - 14) continue;
    end = x(tick);
    svg.append(draw("text", { x: end, y: height + 16, "text-anchor": "middle" }, short(tick)));
  }
  const line = (value, name) => svg.append(draw("line", { class: name, x1: x(value), x2: x(value), y1: 10, y2: height }));
  if (group.first !== null && group.first !== group.threshold) line(group.first, "first");
  if (group.threshold !== null) line(group.threshold, "line");
  $("plot").replaceChildren(svg);
  const slider = $("slider");
  if (document.activeElement !== slider || slider.dataset.group !== group.title) drawSlider(scale);
  slider.scale = scale;
}

function drawSlider(scale) {
  $("slider").value = group.threshold === null ? 1000 : Math.round(1000 * scale.part(group.threshold));
  $("slider").dataset.group = group.title;
}

function drawOverview() {
  const total = { good: 0, defective: 0, unlabelled: 0, falseAlarms: 0, missed: 0 };
  const row = (head, cells, of) => {
    const line = document.createElement("tr");
    const first = document.createElement("th");
    first.scope = "row";
    first.append(head);
    line.append(first, ...cells.map((text) => make("td", "number", String(text))));
    if (of === group) line.setAttribute("aria-current", "true");
    return line;
  };
  const rows = groups.map((of) => {
    const found = count(of);
    for (const name of Object.keys(total)) total[name] += found[name];
    const button = make("button", "", of.title);
    button.type = "button";
    button.addEventListener("click", () => select(of));
    const moved = of.threshold === of.first ? "" : ` (was ${short(of.first)})`;
    return row(button, [short(of.threshold) + moved, ...sharesOf(of, found), found.unlabelled], of);
  });
  if (groups.length > 1) {
    const sum = row("all", ["", ...sharesOf({}, total), total.unlabelled], null);
    sum.className = "total";
    rows.push(sum);
  }
  const active = document.activeElement?.closest?.("#overview tr");
  const index = active ? [...active.parentElement.children].indexOf(active) : -1;
  $("overview").replaceChildren(...rows);
  if (index >= 0) rows[index].querySelector("button")?.focus();
}

function drawCounts() {
  const found = count(group);
  $("name").textContent = group.title;
  const items = sharesOf(group, found).map((text, index) => {
    const item = make("span", "", index ? "Missed " : "False alarms ");
    item.append(make("strong", "", text));
    return item;
  });
  $("counts").replaceChildren(...items);
  const anomalous = group.threshold === null ? "" : `, ${found.alarms} of them called anomalous`;
  $("unlabelled").textContent = found.unlabelled ? `${found.unlabelled} without label${anomalous}.` : "";
  if (document.activeElement !== $("threshold")) $("threshold").value = group.threshold === null ? "" : Number(group.threshold.toPrecision(7));
  $("learned").hidden = group.first === null || group.threshold === group.first;
  $("learned").textContent = `Back to ${short(group.first)}`;
}

/* Cards of images. */

function makeCard(image, onPicture) {
  const card = make("article", "image");
  const picture = make("button", "picture");
  picture.type = "button";
  if (image.picture) {
    const shown = document.createElement("img");
    shown.src = image.picture;
    shown.alt = image.path;
    shown.addEventListener("load", () => card.classList.toggle("wide", shown.naturalWidth > 2 * shown.naturalHeight));
    picture.append(shown);
  } else {
    picture.append(make("span", "empty", "picture not in this page"));
  }
  picture.addEventListener("click", () => onPicture(image));
  const text = make("div", "text");
  const decision = make("div", "decision");
  const word = make("span", "word");
  const wrong = make("span", "wrong-word");
  decision.append(word, make("span", "score", short(image.score)));
  const path = make("div", "path", image.path.split(/[\\/]/).slice(-2).join("/"));
  path.title = image.path;
  text.append(decision, path);
  const labels = make("div", "labels");
  const buttons = ["good", "defective"].map((label) => {
    const button = make("button", label, label);
    button.type = "button";
    button.addEventListener("click", () => setLabel(image, image.label === label ? "" : label));
    return button;
  });
  labels.append(...buttons);
  card.append(picture, wrong, text, labels);
  return { card, picture, word, wrong, buttons, image };
}

function updateCard({ card, word, wrong, buttons, image }) {
  const anomalous = isAnomalous(group, image);
  const isBad = isWrong(group, image);
  card.classList.toggle("wrong", isBad);
  word.textContent = anomalous === null ? "undecided" : anomalous ? "anomalous" : "normal";
  wrong.textContent = isBad ? (anomalous ? "false alarm" : "missed") : "";
  for (const button of buttons) button.setAttribute("aria-pressed", String(image.label === button.textContent));
}

function isShown(image) {
  const filter = $("filter").value;
  const anomalous = isAnomalous(group, image);
  if (filter === "wrong") return isWrong(group, image);
  if (filter === "unlabelled") return !image.label;
  if (filter === "anomalous") return anomalous === true;
  if (filter === "normal") return anomalous === false;
  return filter === "all" || image.label === filter;
}

function arrange() {
  const far = (image) => (group.threshold === null ? -image.score : Math.abs(image.score - group.threshold));
  order = group.images.filter(isShown).sort((a, b) => far(a) - far(b));
  cards.clear();
  for (const image of order.slice(0, limit)) cards.set(image, makeCard(image, enlarge));
  $("grid").replaceChildren(...[...cards.values()].map((parts) => parts.card));
  for (const parts of cards.values()) updateCard(parts);
  const lacking = group.images.filter((image) => !image.picture).length;
  const pictures = lacking ? `; ${lacking} of ${group.images.length} images are counted, but have no picture in this page` : "";
  $("shown").textContent = `${cards.size} of ${order.length} images shown${pictures}.`;
  $("more").hidden = cards.size === order.length;
}

function update() {
  drawOverview();
  drawCounts();
  drawPlot();
  for (const parts of cards.values()) updateCard(parts);
  if (enlarged) updateCard(enlarged);
}

function select(of) {
  group = of;
  limit = PAGE;
  update();
  arrange();
}

function enlarge(image) {
  enlarged = makeCard(image, () => {});
  updateCard(enlarged);
  enlarged.card.querySelector(".path").textContent = image.path;
  if (image.like) {
    const like = make("figure", "like");
    const shown = document.createElement("img");
    shown.src = image.like;
    shown.alt = `good training image ${image.likeName}`;
    like.append(shown, make("figcaption", "path", `the good training image most like it: ${image.likeName}`));
    const pair = make("div", "pair");
    enlarged.picture.replaceWith(pair);
    pair.append(enlarged.picture, like);
  }
  $("large-card").replaceChildren(enlarged.card);
  if (!$("large").open) $("large").showModal();
  enlarged.picture.focus();
}

function neighbour(image, step) {
  const next = order[order.indexOf(image) + step];
  if (!next) return;
  if (enlarged) enlarge(next);
  else cards.get(next)?.picture.focus();
}

/* Files. */

const quoted = (text) =>
  JSON.stringify(text).replace(/[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
const yamlNumber = (number) => String(number).replace(/^(\d+)e/, "$1.0e"); // else yaml takes 1e-7 for a text
const yamlLevels = (levels) =>
  `{${Object.entries(levels).map(([level, number]) => `${level}: ${yamlNumber(number)}`).join(", ")}}`;

function thresholdsYaml() {
  const everywhere = { ...data.given.everywhere };
  const products = new Map(data.given.products.map(([name, levels]) => [name, { ...levels }]));
  for (const of of groups) {
    if (of.threshold === null) continue;
    if (of.everywhere) everywhere.image = of.threshold;
    else products.set(of.name, { ...products.get(of.name), image: of.threshold });
  }
  const lines = Object.keys(everywhere).length ? [`global: ${yamlLevels(everywhere)}`] : [];
  const names = [...products].map(([name, levels]) => `  ${quoted(name)}: ${yamlLevels(levels)}`);
  return [...lines, names.length ? "products:" : "products: {}", ...names, ""].join("\n");
}

function labelsCsv() {
  const formula = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/; // as files.py: what spreadsheets would run
  const plain = (text) => (formula.test(text) ? `'${text}` : text);
  const plainPath = (text) => (formula.test(text) ? `./${text}` : text);
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = groups.flatMap((of) =>
    of.images
      .filter((image) => image.label || image.first) // also those whose label was taken back
      .map((image) => [plainPath(image.path), plain(of.name), image.label].map(cell).join(",")),
  );
  return ["path,product,label", ...rows, ""].join("\n");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/* What a person does. */

$("slider").addEventListener("input", (event) => {
  setThreshold(Number(event.target.scale.value(event.target.value / 1000).toPrecision(5)));
});
$("slider").addEventListener("change", arrange);
$("threshold").addEventListener("input", (event) => {
  setThreshold(Number(event.target.value));
  arrange(); // not on change, which comes with the click on a label: its card would be gone
});
$("learned").addEventListener("click", () => {
  setThreshold(group.first);
  arrange();
});
$("filter").addEventListener("change", () => {
  limit = PAGE;
  arrange();
});
$("more").addEventListener("click", () => {
  limit += PAGE;
  arrange();
});
$("save-thresholds").addEventListener("click", () => save("thresholds.yaml", thresholdsYaml()));
$("save-labels").addEventListener("click", () => save("labels.csv", labelsCsv()));
$("reset").addEventListener("click", () => {
  if (!confirm("Forget all labels and thresholds that were set in this page?")) return;
  for (const of of groups) {
    of.threshold = of.first;
    for (const image of of.images) image.label = image.first;
  }
  keep();
  select(group);
});
$("large").addEventListener("close", () => {
  const image = enlarged?.image;
  enlarged = null;
  cards.get(image)?.picture.focus();
});
$("previous").addEventListener("click", () => neighbour(enlarged.image, -1));
$("next").addEventListener("click", () => neighbour(enlarged.image, 1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = event.target.closest?.(".image");
  const image = enlarged?.image ?? [...cards.values()].find((parts) => parts.card === card)?.image;
  if (!image) return;
  const label = { g: "good", d: "defective", u: "" }[event.key.toLowerCase()];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? (label === undefined ? 0 : 1);
  if (!step) return;
  event.preventDefault();
  if (label !== undefined) setLabel(image, label);
  neighbour(image, step);
});
new ResizeObserver(drawPlot).observe($("plot"));

if (data.leftOut.length) {
  const rows = data.leftOut.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => make("td", "", text)));
    return row;
  });
  $("left-out").hidden = false;
  $("left-out").querySelector("summary").textContent = `Not counted: ${data.leftOut.length} images`;
  $("left-out").querySelector("tbody").append(...rows);
}
restore();
select(group);
