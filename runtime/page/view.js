// The page itself: pictures that a person gives, their answers, the views, and the threshold.
//
// A source answers: {open(key), answer(model, file, side), save(model, file, look), atOnce}; see alone.js and server.js.
// An answer is {shown, planes, size, original, times, notes}: a picture to draw of `size`, (height, width), and the
// probabilities Float32Array [classes, *size]; `original` is the (height, width) of the file.

import { VIEWS, drawn, foreground, sharesOf } from "./answer.js";
import { LOOK } from "./look.js";
import { resampled, within } from "./resample.js";

const SIDE = 1600; // pixels of the longer side of the picture that is shown
const SMALL = 160; // the same of the pictures in the list
const KEPT = 400e6; // bytes of answers that are kept; others are asked for again when they are chosen

const PICTURE = /\.(avif|bmp|gif|heic|heif|jpe?g|jfif|pgm|png|ppm|tiff?|webp)$/i;

const at = (id) => document.getElementById(id);

function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
const pictures = (count) => `${count} picture${count === 1 ? "" : "s"}`;

class Page {
  constructor(source) {
    Object.assign(this, { source, models: [], early: [], items: [], queue: [], running: 0, chosen: null, round: 0, frame: 0, later: 0 });
  }

  async open(key) {
    at("problem").hidden = at("key-form").hidden = true;
    try {
      const { models, place } = await this.source.open(key);
      this.models = models;
      at("place").textContent = place;
    } catch (error) {
      at("device").textContent = error.needsKey ? "The server asks for a key." : "The model cannot be used.";
      at("key-form").hidden = !error.needsKey;
      if (!error.needsKey || key) this.complain(error.needsKey ? "This is not the server's key." : error.message);
      if (error.needsKey) at("key").focus();
      return;
    }
    at("model").replaceChildren(...this.models.map(({ card }, value) => made("option", { value, textContent: card.name })));
    at("model-row").hidden = this.models.length < 2;
    document.querySelector("main").hidden = false;
    this.takeModel(0);
    if (this.early.length) this.add(this.early.splice(0));
  }

  complain(text) {
    at("problem").textContent = text;
    at("problem").hidden = false;
  }

  /** Show another model, and ask it about all pictures. */
  takeModel(index) {
    this.model = this.models[index];
    const { card, device, note } = this.model, { output } = card;
    this.output = output;
    this.foreground = foreground(output);
    document.title = `${card.name} – unet-deploy`;
    at("name").textContent = card.name;
    at("device").textContent = device;
    at("note").textContent = note;
    at("about").replaceChildren(...this.about(card).flatMap(([name, text]) => [
      made("dt", { textContent: name }), made("dd", { textContent: text }),
    ]));
    at("threshold-row").hidden = output.activation === "softmax";
    at("threshold-reset").textContent = `Back to the model's ${output.threshold}`;
    at("class-row").hidden = this.foreground.length < 2;
    at("class").replaceChildren(made("option", { value: "", textContent: "all" }), ...this.foreground.map((value) =>
      made("option", { value, textContent: output.classes[value] })));
    this.setThreshold(output.threshold);
    this.round++;
    for (const item of this.items) {
      this.forget(item);
      Object.assign(item, { state: "waiting", small: null });
    }
    this.queue = [...this.items];
    this.work();
  }

  about(card) {
    const [height, width] = card.input.size, metrics = Object.entries(card.training?.metrics ?? {});
    return [
      ["classes", card.output.classes.join(", ")],
      ["trained at", `${width}x${height}, ${card.input.channels}, ${card.input.fit}`],
      ["precision", card.target === "cpu" ? `${card.precision} for CPUs` : card.precision],
      ["weights", card.weights_sha256.slice(0, 12)],
      ...metrics.map(([name, value]) => [name.replaceAll("_", " "), value.toFixed(4)]),
    ];
  }

  get look() {
    const view = document.querySelector("#views input:checked").value, one = at("class").value;
    return { view, threshold: this.threshold, chosen: one === "" ? this.foreground : [Number(one)], ...LOOK };
  }

  setThreshold(value) {
    this.threshold = value;
    at("threshold").value = value;
    at("threshold-value").textContent = value.toFixed(2);
    this.redraw();
  }

  add(files) {
    const found = files.filter((file) => file.type.startsWith("image/") || PICTURE.test(file.name));
    const left = files.length - found.length;
    if (left) this.complain(`${left === 1 ? "1 file is no picture and was" : `${left} files are no pictures and were`} left out.`);
    else at("problem").hidden = true;
    for (const file of found) {
      const item = { file, name: file.webkitRelativePath || file.name, state: "waiting" };
      item.canvas = made("canvas", { width: 4, height: 3 });
      item.canvas.setAttribute("aria-hidden", "true");
      item.label = made("span");
      item.button = made("button", { type: "button", tabIndex: -1, onclick: () => this.choose(item) }, item.canvas,
        made("span", { textContent: item.name }), item.label);
      item.entry = made("li", {}, item.button);
      at("list").append(item.entry);
      this.items.push(item);
      this.queue.push(item);
    }
    if (!this.chosen && this.items.length) this.choose(this.items[0]);
    this.work();
  }

  clear() {
    this.round++;
    for (const item of this.items) this.forget(item);
    Object.assign(this, { items: [], queue: [], chosen: null });
    at("list").replaceChildren();
    at("problem").hidden = true;
    this.work();
    this.redraw();
    at("files").focus();
  }

  choose(item, focus = false) {
    this.chosen = item;
    for (const other of this.items) {
      other.button.tabIndex = other === item ? 0 : -1;
      other.button.setAttribute("aria-current", String(other === item));
    }
    if (focus) item.button.focus();
    if (item.state === "done" && !item.answer) {
      item.state = "waiting";
      this.queue.unshift(item);
      this.work();
    }
    this.redraw();
  }

  /** Start as many pictures as may run at once, and tell how far the page is. */
  work() {
    while (this.running < this.source.atOnce && this.queue.length) this.ask(this.queue.shift());
    const count = (state) => this.items.filter((item) => item.state === state).length;
    const [done, failed] = [count("done"), count("failed")], rest = this.items.length - done - failed;
    const failures = failed ? `, ${failed} failed` : "";
    const text = rest ? `${done + failed} of ${pictures(this.items.length)} done${failures}` : `${pictures(done)} done${failures}`;
    at("progress").textContent = text;
    at("all").hidden = !this.items.length;
    at("empty").hidden = this.items.length > 0;
    if (!rest && this.items.length) at("status").textContent = text;
    document.body.dataset.busy = String(rest > 0);
  }

  async ask(item) {
    const { round } = this;
    this.running++;
    item.state = "running";
    this.describe(item);
    try {
      const answer = await this.source.answer(this.model, item.file, SIDE);
      if (round === this.round) this.take(item, answer);
    } catch (error) {
      if (round === this.round) Object.assign(item, { state: "failed", error: error.message });
    }
    this.running--;
    this.describe(item);
    if (item === this.chosen) this.redraw();
    this.work();
  }

  take(item, answer) {
    const classes = this.output.classes.length, [height, width] = answer.size, size = within(answer.size, SMALL);
    const small = new Float32Array(classes * size[0] * size[1]);
    for (let index = 0; index < classes; index++) {
      const plane = answer.planes.subarray(index * height * width, (index + 1) * height * width);
      small.set(resampled(plane, [height, width, 1], size), index * size[0] * size[1]);
    }
    const { data } = pixelsOf(answer.shown, size);
    Object.assign(item, { state: "done", answer, small: { planes: small, rgba: data, size }, used: performance.now() });
    this.drop();
    this.drawSmall(item);
  }

  /** Forget the answers that were not looked at for longest, if too many bytes are kept. */
  drop() {
    const kept = this.items.filter((item) => item.answer).sort((a, b) => b.used - a.used);
    let sum = 0;
    for (const item of kept) {
      sum += item.answer.planes.byteLength;
      if (sum > KEPT && item !== this.chosen && item !== kept[0]) this.forget(item);
    }
  }

  forget(item) {
    item.answer?.shown.close();
    item.answer = null;
  }

  describe(item) {
    const states = { waiting: "waiting", running: "working …", failed: item.error };
    item.label.className = item.state === "failed" ? "failed" : "quiet";
    item.label.textContent = states[item.state] ?? this.sharesText(item.shares ?? []);
  }

  sharesText(shares) {
    const found = shares.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share);
    const names = found.slice(0, 3).map(({ name, share }) => `${name} ${percent(share)}`);
    return names.length ? names.join(", ") + (found.length > 3 ? " …" : "") : "nothing found";
  }

  drawSmall(item) {
    const { planes, rgba, size } = item.small;
    put(item.canvas, drawn(rgba, planes, size, this.output, this.look), size);
    const whole = item.answer ?? item.small; // the share of the small picture is a little off
    item.shares = sharesOf(whole.planes, whole.size[0] * whole.size[1], this.output, this.threshold);
    this.describe(item);
  }

  /** Draw the chosen picture in the next frame, and those in the list when the slider rests. */
  redraw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
    clearTimeout(this.later);
    this.later = setTimeout(() => this.items.filter((item) => item.small).forEach((item) => this.drawSmall(item)), 150);
  }

  draw() {
    const item = this.chosen, answer = item?.answer;
    at("result").hidden = !item;
    if (!item) return;
    at("result-name").textContent = item.name;
    at("result-state").hidden = Boolean(answer);
    at("result-state").className = item.state === "failed" ? "problem" : "quiet";
    at("result-state").textContent = item.state === "failed" ? `${item.file.name}: ${item.error}` : "Working …";
    for (const part of ["canvas", "caption", "shares", "times", "saves"]) at(part).hidden = !answer;
    if (!answer) return;
    item.used = performance.now();
    const { size, original, times, notes } = answer, { look } = this;
    const { data } = pixelsOf(answer.shown, size);
    put(at("canvas"), drawn(data, answer.planes, size, this.output, look), size);
    const shares = sharesOf(answer.planes, size[0] * size[1], this.output, this.threshold);
    at("canvas").setAttribute("aria-label", `${VIEWS[look.view]} of ${item.name}: ${this.sharesText(shares)}`);
    const reduced = size[0] === original[0] ? "" : `, shown at ${size[1]}x${size[0]}`;
    at("caption").textContent = [`${original[1]}x${original[0]} pixels${reduced}`, ...notes].join("; ");
    const rows = shares.sort((a, b) => b.share - a.share);
    at("shares").tBodies[0].replaceChildren(...rows.map((row) => this.shareRow(row)));
    const total = Object.values(times).reduce((sum, time) => sum + time, 0);
    const stages = Object.entries(times).map(([name, time]) => `${name} ${time.toFixed(1)}`);
    at("times").textContent = `${total.toFixed(0)} ms (${stages.join(", ")})`;
  }

  shareRow({ name, share, index }) {
    const swatch = made("span", { className: "swatch" });
    const [red, green, blue] = LOOK.colours[(index - this.foreground[0]) % LOOK.colours.length];
    swatch.style.background = `rgb(${red} ${green} ${blue})`;
    const head = made("th", { scope: "row" }, swatch, name);
    return made("tr", {}, head, made("td", { textContent: percent(share) }));
  }

  async save(button, view) {
    const item = this.chosen;
    button.disabled = true;
    try {
      const file = await this.source.save(this.model, item.file, { ...this.look, view, chosen: this.foreground });
      const suffix = file.type === "image/tiff" ? "tif" : "png", link = made("a", {
        href: URL.createObjectURL(file), download: `${item.file.name.replace(/\.[^.]*$/, "")}_${view}.${suffix}`,
      });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      this.complain(`${item.file.name}: ${error.message}`);
    }
    button.disabled = false;
  }

  /** Move along the list with the arrow keys. */
  move(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }, place = this.items.indexOf(this.chosen);
    const places = { Home: 0, End: this.items.length - 1 };
    const next = this.items[places[event.key] ?? place + (steps[event.key] ?? NaN)];
    if (!next) return;
    event.preventDefault();
    this.choose(next, true);
  }
}

/** The RGBA of a picture that can be drawn, at a `size`, (height, width). */
function pixelsOf(picture, [height, width]) {
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, width, height);
  return pen.getImageData(0, 0, width, height);
}

function put(canvas, rgba, [height, width]) {
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
}

/** All files of what was dropped; folders are walked. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()), files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) return void found.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return undefined;
      for (const one of part) await walk(one);
    }
  };
  for (const entry of entries.filter(Boolean)) await walk(entry);
  return found;
}

/** Connect the page's controls with a source, and open it. */
export function start(source) {
  const page = new Page(source);
  at("not-started").remove();
  at("views").append(...Object.entries(VIEWS).map(([value, name], index) => made("label", {},
    made("input", { type: "radio", name: "view", value, checked: !index }), ` ${name}`)));
  at("saves").append(...["mask", "overlay", "cutout", "probability"].map((view) => made("button", {
    type: "button", textContent: `Save ${VIEWS[view].toLowerCase()}`, onclick: (event) => page.save(event.currentTarget, view),
  })));
  at("views").onchange = at("class").onchange = () => page.redraw();
  at("threshold").oninput = () => page.setThreshold(at("threshold").valueAsNumber);
  at("threshold-reset").onclick = () => page.setThreshold(page.output.threshold);
  at("model").onchange = () => page.takeModel(Number(at("model").value));
  at("clear").onclick = () => page.clear();
  at("list").onkeydown = (event) => page.move(event);
  at("key-form").onsubmit = (event) => {
    event.preventDefault();
    page.open(at("key").value);
  };
  for (const id of ["files", "folder"]) {
    at(id).onchange = () => {
      page.add([...at(id).files]);
      at(id).value = "";
    };
  }
  document.ondragover = (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  };
  document.ondragleave = (event) => event.relatedTarget ?? at("drop").classList.remove("over");
  document.ondrop = async (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    const files = await filesOf(event.dataTransfer);
    if (page.models.length) page.add(files);
    else page.early.push(...files); // added when the model is open
  };
  page.open();
}
