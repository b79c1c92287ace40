"use strict";
// The page: what is asked for is in the address, and everything shown follows from it. Whatever others have written
// (names, captions, answers) is only ever put in as text.

const PAGE = 24, MOST = 200, FRAMES = 6;
const $ = (id) => document.getElementById(id);

/** An element with properties, `on…` listeners and children; texts are texts. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

async function call(path, body, options = {}) {
  const how = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...how, ...options });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.detail || answer.statusText);
  return found;
}

function clock(seconds) {
  const tenths = Math.round(10 * seconds), hours = Math.floor(tenths / 36000);
  const minutes = Math.floor(tenths / 600) % 60, rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit++) count /= 1000;
  return `${count.toFixed(unit && count < 10 ? 1 : 0)} ${units[unit]}`;
}

// --- What is asked for, as the address has it -----------------------------------------------------------------------

const uploads = new Map(); // id → { name, url } of what was dropped here
let service = null, answer = null, asked = null, wanted = PAGE, controller = null;

function read() {
  const given = new URLSearchParams(location.search);
  const like = (given.get("like") || "").split(",").filter(Boolean).map((one) => {
    const [id, weight] = one.split("*");
    return { id, weight: Number(weight) || 1 };
  });
  return {
    q: given.get("q") || "", like, sort: given.get("sort") === "date" ? "date" : "relevance",
    group: given.get("group") !== "0", clips: given.get("find") === "clips", always: given.get("always") === "1",
    hit: given.get("hit"),
  };
}

function address(state) {
  const given = new URLSearchParams();
  if (state.q) given.set("q", state.q);
  if (state.like.length) given.set("like", state.like.map(({ id, weight }) => (weight === 1 ? id : `${id}*${weight}`)).join(","));
  if (state.sort === "date") given.set("sort", "date");
  if (!state.group) given.set("group", "0");
  if (state.clips) given.set("find", "clips");
  if (state.always) given.set("always", "1");
  if (state.hit) given.set("hit", state.hit);
  const text = given.toString();
  return text ? `?${text}` : "/";
}

function go(changes, replace = false) {
  const where = address({ ...read(), ...changes });
  history[replace ? "replaceState" : "pushState"](null, "", where);
  show();
}

/** Show what the address says: search anew only if that is another search. */
async function show() {
  const state = read();
  if (document.activeElement !== $("q") || !asked || asked.q !== state.q) $("q").value = state.q;
  $("sort").value = state.sort;
  $("group").checked = state.group;
  $("find-moments").setAttribute("aria-pressed", String(!state.clips));
  $("find-clips").setAttribute("aria-pressed", String(state.clips));
  document.title = state.q ? `${state.q} – Perceiver-VL` : "Perceiver-VL";
  const same = asked && address({ ...asked, hit: null }) === address({ ...state, hit: null });
  if (!same) {
    wanted = PAGE;
    await search(state);
  }
  showPlayer(read());
}

// --- Results --------------------------------------------------------------------------------------------------------

function tell(text, wrong = false, ...more) {
  $("status").classList.toggle("wrong", wrong);
  $("status").replaceChildren(text, ...more);
}

const findsMoments = (state) => !state.clips && !/(^|\s)type:image(\s|$)/.test(state.q) && service && service.indexes.every((one) => one.segments !== null);

async function search(state, more = false) {
  asked = state;
  if (controller) controller.abort();
  controller = new AbortController();
  if (!state.q.trim() && !state.like.length) {
    answer = null;
    $("hits").replaceChildren();
    $("notes").replaceChildren();
    chips(state, {});
    welcome();
    return;
  }
  if (!more) tell("Searching …");
  const request = { query: state.q, like: state.like, top: wanted, sort: state.sort, group: state.group };
  const moments = findsMoments(state);
  if (moments) Object.assign(request, { always: state.always });
  const started = performance.now();
  try {
    answer = await call(moments ? "/v1/moments" : "/v1/search", request, { signal: controller.signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    answer = null;
    $("hits").replaceChildren();
    chips(state, {});
    tell(error.message, true);
    return;
  }
  chips(state, answer.understood.filters);
  const what = moments ? "segments" : "clips", took = milliseconds((performance.now() - started) / 1000);
  if (answer.found === false && !answer.hits.length) {
    tell("Nothing found: the best is no better than chance.", false, el("button", { onclick: () => go({ always: true }) }, "Show it all the same"));
  } else if (!answer.hits.length) {
    tell("Nothing found: the filters keep nothing.");
  } else {
    const how = answer.recall === null ? answer.method : `${answer.method}, recall ${answer.recall.toFixed(3)}`;
    const doubt = answer.found === false ? " None is better than chance." : "";
    tell(`${answer.hits.length} ${moments ? "moments" : "of them"} in ${answer.searched.toLocaleString()} ${what}, found in ${took} (${milliseconds(answer.seconds.total)} of work, ${how}).${doubt}`);
  }
  $("notes").replaceChildren(...answer.notes.map((note) => el("li", {}, note)));
  const cards = answer.hits.map(card), kept = more ? $("hits").children.length : 0;
  if (more) $("hits").append(...cards.slice(kept));
  else $("hits").replaceChildren(...cards);
}

function welcome() {
  if (!service) return;
  const count = (name) => service.indexes.reduce((sum, one) => sum + (one[name] || 0), 0);
  const hours = count("hours");
  tell(`${count("videos").toLocaleString()} videos (${hours < 1 ? `${(60 * hours).toFixed(1)} min` : `${hours.toFixed(1)} h`}) and ${count("images").toLocaleString()} pictures to search.`);
  $("notes").replaceChildren(...service.notes.map((note) => el("li", {}, note)));
}

const keyOf = (hit) => (hit.start === null || !answer.curves ? hit.id : `${hit.id}@${hit.start.toFixed(2)}-${hit.end.toFixed(2)}`);
const stripOf = (hit, frames) => `/v1/clips/${hit.id}/strip?frames=${frames}` + (hit.kind === "video" && hit.start !== null ? `&start=${hit.start}&end=${hit.end}` : "");
const spanOf = (hit) => (hit.start === null ? "" : answer.curves ? `${clock(hit.start)} – ${clock(hit.end)}` : clock(hit.duration));

function card(hit) {
  const frames = hit.kind === "video" ? FRAMES : 1, source = stripOf(hit, frames);
  const frame = el("div", { className: "frame" }, hit.start === null ? null : el("span", {}, spanOf(hit)));
  const place = (number) => { frame.style.backgroundPosition = `${frames > 1 ? (100 * number) / (frames - 1) : 0}% 0`; };
  const strip = el("img", { className: "strip", alt: "", loading: "lazy", hidden: frames === 1 });
  const picture = frames === 1 ? new Image() : strip;
  picture.addEventListener("load", () => {
    frame.style.backgroundImage = `url("${source}")`;
    frame.style.backgroundSize = `${100 * frames}% 100%`;
    place(Math.floor(frames / 2));
  });
  picture.addEventListener("error", () => {
    frame.classList.add("missing");
    frame.prepend("Cannot be shown");
    strip.hidden = true;
  });
  picture.src = source;
  const follow = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    place(Math.min(frames - 1, Math.max(0, Math.floor((frames * (event.clientX - box.left)) / box.width))));
  };
  frame.addEventListener("pointermove", follow);
  strip.addEventListener("pointermove", follow);
  const opens = el("a", {
    href: address({ ...asked, hit: keyOf(hit) }), draggable: false,
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      go({ hit: keyOf(hit) });
    },
  }, frame, strip, el("div", { className: "about" },
    el("span", { className: "name" }, hit.file), el("span", { className: "score", title: "score" }, hit.score.toFixed(2)),
    hit.captions.length ? el("span", { className: "caption" }, `“${hit.captions[0]}”`) : null));
  const alike = hit.alike.length ? el("details", {}, el("summary", {}, `${hit.alike.length} more alike`),
    el("ul", {}, ...hit.alike.map((one) => el("li", {}, el("a", { href: address({ ...asked, hit: one.id }), onclick: (event) => { event.preventDefault(); go({ hit: one.id }); } }, one.file))))) : null;
  return el("li", { className: "hit" }, opens, el("div", { className: "more" },
    el("button", { type: "button", "aria-label": `More like ${hit.file}`, onclick: () => like(hit.id) }, "More like this"), alike));
}

function like(id) {
  const state = read();
  $("player").close();
  go({ like: [...state.like.filter((one) => one.id !== id), { id, weight: 1 }], hit: null });
}

/** Filters as the service understood them, and examples; each can be taken away. */
function chips(state, filters) {
  const of = Object.entries(filters).map(([name, value]) => el("li", { className: "chip" }, `${name}: ${value}`,
    el("button", { type: "button", "aria-label": `Remove ${name}`, onclick: () => go({ q: state.q.replace(new RegExp(`(^|\\s)${name}:("[^"]*"|\\S*)`), "").trim() }) }, "✕")));
  const examples = state.like.map((one) => {
    const known = uploads.get(one.id);
    const weights = el("select", { "aria-label": "Weight of the example", onchange: (event) => go({ like: state.like.map((other) => (other === one ? { ...one, weight: Number(event.target.value) } : other)) }) },
      ...[[1, "like it"], [2, "twice as much"], [0.5, "half as much"], [-0.5, "unlike it"]].map(([weight, says]) => el("option", { value: weight, selected: weight === one.weight }, says)));
    const picture = known && known.video ? null : el("img", { alt: "", src: known ? known.url : `/v1/clips/${one.id}/strip?frames=1` });
    return el("li", { className: "chip" }, picture, known ? known.name : "example", weights,
      el("button", { type: "button", "aria-label": "Remove the example", onclick: () => go({ like: state.like.filter((other) => other !== one) }) }, "✕"));
  });
  $("chips").replaceChildren(...of, ...examples);
}

async function upload(file) {
  tell(`Reading ${file.name} …`);
  try {
    const made = await call("/v1/uploads", undefined, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
    uploads.set(made.id, { name: file.name, url: URL.createObjectURL(file), video: made.kind === "video" });
    like(made.id);
  } catch (error) {
    tell(error.message, true);
  }
}

// --- The player -----------------------------------------------------------------------------------------------------

const player = $("player");
let shown = null; // { hit, clip, video, origin } of what is on show

const places = () => (answer ? answer.hits : []);

async function showPlayer(state) {
  if (!state.hit) {
    if (player.open) player.close();
    return;
  }
  if (shown && shown.key === state.hit && player.open) return;
  const known = places().find((hit) => keyOf(hit) === state.hit);
  const [id, span] = state.hit.split("@"), [start, end] = (span || "").split("-").map(Number);
  leave();
  shown = { key: state.hit };
  const mine = shown;
  try {
    const clip = await call(`/v1/clips/${id}`);
    if (shown !== mine) return;
    shown = { key: state.hit, clip, hit: known || { ...clip, start: span ? start : null, end: span ? end : null, score: 0, alike: [] }, origin: 0 };
  } catch (error) {
    tell(error.message, true);
    return go({ hit: null }, true);
  }
  const { clip, hit } = shown;
  $("player-name").textContent = hit.file;
  $("player-time").textContent = hit.start === null || !span ? "" : `${clock(hit.start)} – ${clock(hit.end)}`;
  $("original").href = `/v1/media/${id}`;
  $("original").download = hit.file.split("/").pop();
  $("answers").replaceChildren();
  $("looked").hidden = true;
  $("look").setAttribute("aria-expanded", "false");
  note(clip.captions.length ? `“${clip.captions[0]}”` : "");
  const at = places().findIndex((one) => keyOf(one) === state.hit);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at >= places().length - 1;
  if (!player.open) player.showModal();
  player.scrollTop = 0;
  curve();
  if (clip.kind === "image") $("screen").replaceChildren(el("img", { src: `/v1/media/${id}`, alt: hit.file, onerror: strips }));
  else if (clip.plays === "file") play(`/v1/media/${id}`, hit.start || 0);
  else if (clip.plays === "stream") stream(hit.start || 0);
  else strips();
}

function note(text, wrong = false) {
  $("player-note").classList.toggle("wrong", wrong);
  $("player-note").textContent = text;
}

/** Stop what is playing, so that the service stops making it. */
function leave() {
  if (shown && shown.video) {
    shown.video.onerror = null;
    shown.video.pause();
    shown.video.removeAttribute("src");
    shown.video.load();
  }
  $("screen").replaceChildren();
}

function play(source, start, origin = 0) {
  leave();
  const mine = shown;
  const video = el("video", { controls: true, playsInline: true, src: source, preload: "auto" });
  Object.assign(shown, { video, origin });
  video.addEventListener("loadedmetadata", () => {
    if (start - origin > 0.01) video.currentTime = start - origin;
    video.play().catch(() => { video.muted = true; video.play().catch(() => {}); });
  }, { once: true });
  video.addEventListener("timeupdate", playhead);
  video.onerror = () => {
    if (shown !== mine || shown.video !== video) return;
    if (origin === 0 && source.endsWith(shown.clip.id)) stream(start);
    else strips();
  };
  $("screen").replaceChildren(video);
}

/** Converted by the service from a second on; where it really begins, a keyframe perhaps, it says. */
async function stream(start) {
  const mine = shown, source = `/v1/media/${shown.clip.id}/stream?start=${start.toFixed(3)}`;
  const answer = await fetch(source, { method: "HEAD" });
  if (shown !== mine) return;
  if (!answer.ok) return strips();
  shown.streams = true;
  play(source, start, Number(answer.headers.get("X-Start")));
}

function strips() {
  leave();
  shown.video = null;
  note("A browser cannot play this; these are frames of it.");
  $("screen").replaceChildren(el("div", { className: "strips", tabIndex: 0, role: "group", "aria-label": "Frames" }, el("img", { src: stripOf(shown.hit, 16), alt: `Frames of ${shown.hit.file}`, onerror: () => note("It cannot be shown any more.", true) })));
}

function seek(seconds) {
  if (!shown || !shown.video) return;
  const { video, origin } = shown;
  if (shown.streams && (seconds < origin || seconds > origin + (video.buffered.length ? video.buffered.end(video.buffered.length - 1) : 0))) stream(Math.max(0, seconds));
  else video.currentTime = Math.max(0, seconds - origin);
}

const now = () => (shown && shown.video ? shown.origin + shown.video.currentTime : 0);

function curve() {
  const points = answer && answer.curves ? answer.curves[shown.clip.id] : null, box = $("curve");
  box.hidden = !points || !points.length || !shown.clip.duration;
  if (box.hidden) return;
  const length = shown.clip.duration, scores = points.map((one) => one.score);
  const low = Math.min(...scores), high = Math.max(...scores);
  const x = (seconds) => (1000 * seconds) / length, y = (score) => 95 - 90 * (high > low ? (score - low) / (high - low) : 0.5);
  const stretches = [[]];
  points.sort((one, other) => one.start - other.start).forEach((one, place) => {
    if (place && points[place - 1].end < one.start - 0.001) stretches.push([]);
    stretches[stretches.length - 1].push(`${x(one.start)},${y(one.score)} ${x(one.end)},${y(one.score)}`);
  });
  const { start, end } = shown.hit;
  shown.line = svg("line", { x1: 0, x2: 0, y1: 0, y2: 100 });
  box.replaceChildren(svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...(start === null ? [] : [svg("rect", { x: x(start), width: Math.max(2, x(end - start)), y: 0, height: 100 })]),
    ...stretches.map((one) => svg("polyline", { points: one.join(" ") })), shown.line));
  box.setAttribute("aria-valuemax", length.toFixed(1));
  playhead();
}

function playhead() {
  if (!shown || !shown.line) return;
  const at = (1000 * now()) / shown.clip.duration;
  shown.line.setAttribute("x1", at);
  shown.line.setAttribute("x2", at);
  $("curve").setAttribute("aria-valuenow", now().toFixed(1));
  $("curve").setAttribute("aria-valuetext", clock(now()));
}

function step(by) {
  const at = places().findIndex((hit) => shown && keyOf(hit) === shown.key), next = places()[at + by];
  if (at >= 0 && next) go({ hit: keyOf(next) }, true);
}

async function look() {
  const open = $("look").getAttribute("aria-expanded") === "true", mine = shown;
  $("look").setAttribute("aria-expanded", String(!open));
  $("looked").hidden = open;
  if (open) return;
  $("looked").replaceChildren("Looking …");
  const { hit, clip } = shown, moment = clip.kind === "video" && hit.start !== null;
  const span = moment ? `&start=${hit.start}&end=${hit.end}` : "";
  try {
    const found = await call(`/v1/clips/${clip.id}/look?query=${encodeURIComponent(read().q || "a")}${span}`);
    const picture = new Image();
    picture.src = stripOf(hit, found.grid.length);
    await picture.decode();
    if (shown !== mine) return;
    $("looked").replaceChildren(heat(picture, found, clip), el("p", { className: "quiet" }, "Where the model looked: brighter parts had more of its attention. That is no proof of why it was found."));
  } catch (error) {
    $("looked").replaceChildren(el("p", { className: "wrong" }, error.message));
  }
}

/** Frames, darkened where the model did not look. */
function heat(picture, found, clip) {
  const canvas = el("canvas", { width: picture.naturalWidth, height: picture.naturalHeight, role: "img", "aria-label": "Frames, brighter where the model looked" });
  const draw = canvas.getContext("2d"), wide = canvas.width / found.grid.length, high = canvas.height;
  const scale = Math.min(wide / clip.width, high / clip.height), width = clip.width * scale, height = clip.height * scale;
  const most = Math.max(...found.grid.flat());
  draw.drawImage(picture, 0, 0);
  found.grid.forEach((grid, frame) => grid.forEach((share, patch) => {
    const row = Math.floor(patch / found.columns), column = patch % found.columns;
    const x = (column) => Math.round(frame * wide + (wide - width) / 2 + (column * width) / found.columns);
    const y = (row) => Math.round((high - height) / 2 + (row * height) / found.rows);
    const area = [x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row)];
    draw.fillStyle = `rgba(0, 0, 0, ${0.75 * (1 - share / most)})`;
    draw.fillRect(...area);
    draw.fillStyle = `rgba(255, 196, 0, ${0.25 * (share / most)})`;
    draw.fillRect(...area);
  }));
  return canvas;
}

// --- Questions ------------------------------------------------------------------------------------------------------

let slowest = new Map(); // what reading a clip for its first question took

async function ask(event) {
  event.preventDefault();
  const mine = shown, { hit, clip } = shown, typed = $("choices").value.split("|").map((one) => one.trim()).filter(Boolean);
  const request = { id: clip.id, question: $("question").value };
  if (typed.length) request.choices = typed;
  if (clip.kind === "video" && hit.start !== null && answer && answer.curves) Object.assign(request, { start: hit.start, end: hit.end });
  const setting = dialled();
  if (setting) request.budget = setting.budget;
  $("answers").replaceChildren("Asking …");
  try {
    const found = await call("/v1/ask", request);
    if (shown !== mine) return;
    const key = `${shown.key} ${found.budget}`, { read, answer: answering } = found.seconds;
    if (!found.cached) slowest.set(key, read + answering);
    const before = slowest.get(key);
    const says = found.cached ? `Answered in ${milliseconds(answering)}; the clip had been read for an earlier question${before ? ` (that took ${milliseconds(before)})` : ""}.`
      : `Read in ${milliseconds(read)}, answered in ${milliseconds(answering)}; the next question about it costs only the second.`;
    $("answers").replaceChildren(el("ol", {}, ...found.answers.map((one) => el("li", {}, el("span", {}, one.answer),
      el("meter", { value: Math.min(1, Math.max(0, one.score)), "aria-label": one.answer }), el("span", {}, one.score.toFixed(3))))), el("p", { className: "quiet" }, says));
  } catch (error) {
    if (shown === mine) $("answers").replaceChildren(el("p", { className: "wrong" }, error.message));
  }
}

/** The settings of the model's Pareto front, cheapest first; each scores more than all cheaper ones. */
function front() {
  const kept = [];
  const settings = service && service.budgets ? [...service.budgets.settings] : [];
  settings.sort((one, other) => one.milliseconds - other.milliseconds || other.score - one.score);
  for (const one of settings) if (!kept.length || one.score > kept[kept.length - 1].score) kept.push(one);
  return kept;
}

const dialled = () => ($("budget").hidden ? null : front()[Number($("dial").value)]);

function dial() {
  const setting = dialled();
  if (!setting) return;
  const { metric, lower_is_better: lower, data } = service.budgets, score = lower ? -setting.score : setting.score;
  $("dial-says").textContent = `${setting.budget}: about ${setting.milliseconds.toFixed(1)} ms and ${setting.gflops.toFixed(2)} GFLOPs, ${metric} ${score.toFixed(1)} on ${data}`;
}

// --- The index ------------------------------------------------------------------------------------------------------

async function load() {
  for (;;) {
    try {
      service = await call("/v1/index");
      break;
    } catch (error) {
      tell(error.message, true);
      await new Promise((done) => setTimeout(done, 500));
    }
  }
  $("kinds").hidden = !service.indexes.every((one) => one.segments !== null);
  const settings = front();
  $("budget").hidden = settings.length < 2;
  $("dial").max = settings.length - 1;
  $("dial").value = settings.length - 1;
  dial();
  $("choices").required = service.answers === null;
}

function indexes() {
  $("indexes").replaceChildren(...service.indexes.map((one) => {
    const facts = [
      ["Media", one.media], ["Files", `${one.videos.toLocaleString()} videos (${one.hours.toFixed(2)} h), ${one.images.toLocaleString()} pictures, ${bytes(one.media_bytes)}`],
      ["Segments", one.segments === null ? "none: perceiver-vl index --segments 2 makes some" : `${one.segments.toLocaleString()} (${one.segments_of === "scenes" ? "scenes" : `of ${one.segments_of} s`})`],
      ["Index", `${one.bytes === null ? "in object storage" : bytes(one.bytes)}, version ${one.version}, budget ${one.budget}`],
    ];
    const update = el("button", { type: "button", hidden: !service.can_index, onclick: () => start(one.name) }, "Update: find new, renamed and deleted files");
    return el("section", {}, el("h3", {}, one.name), el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      skipped(one.skipped), update, el("div", { role: "status" }));
  }));
  showJob();
}

const skipped = (files) => (files.length ? el("details", {}, el("summary", {}, `${files.length} ${files.length === 1 ? "file" : "files"} could not be read`), el("ul", {}, ...files.map((one) => el("li", {}, `${one.file}: ${one.reason}`)))) : el("p", { className: "quiet" }, "All files could be read."));

let job = null; // the last update, as it was last told

/** How an update goes on, or how it ended, under its index. */
function showJob() {
  const section = job && [...$("indexes").children].find((one) => one.firstChild.textContent === job.index);
  if (!section) return;
  const box = section.lastChild, runs = job.state === "running";
  box.previousSibling.disabled = runs;
  if (!runs) return box.replaceChildren(el("p", { className: job.error ? "wrong" : "" }, job.error || job.summary || job.state));
  if (!box.querySelector("progress")) {
    const stop = el("button", { type: "button", onclick: () => call(`/v1/index/jobs/${job.id}`, undefined, { method: "DELETE" }) }, "Stop");
    box.replaceChildren(el("progress", { "aria-label": "Progress" }), el("p", { className: "quiet" }), stop);
  }
  const [bar, says] = box.children;
  if (job.total) Object.assign(bar, { max: job.total, value: job.done });
  says.textContent = job.total ? `${job.stage}: ${job.done} of ${job.total}` : `${job.stage} …`;
}

function follow(begun) {
  job = begun;
  showJob();
  const events = new EventSource(`/v1/index/jobs/${job.id}/events`);
  events.onerror = () => events.close();
  events.onmessage = async (event) => {
    job = JSON.parse(event.data);
    if (job.state === "running") return showJob();
    events.close();
    service = await call("/v1/index");
    indexes();
  };
}

async function start(name) {
  try {
    follow(await call("/v1/index/jobs", { index: name }));
  } catch (error) {
    job = { index: name, state: "failed", error: error.message };
    showJob();
  }
}

async function openIndex() {
  $("index").showModal();
  const [found, { jobs }] = await Promise.all([call("/v1/index"), call("/v1/index/jobs")]);
  const running = jobs.find((one) => one.state === "running");
  service = found;
  indexes();
  if (running && !(job && job.id === running.id)) follow(running); // begun elsewhere
}

// --- Keys and events ------------------------------------------------------------------------------------------------

const isTyping = (target) => target.closest("input:not([type=checkbox]):not([type=range]), select, textarea");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  if (key === "/" && !isTyping(target) && !$("index").open) {
    event.preventDefault();
    if (player.open) go({ hit: null });
    $("q").focus();
    $("q").select();
  } else if (key === "Escape" && target === $("q")) {
    event.preventDefault();
    const first = $("hits").querySelector("a");
    if (first) first.focus();
  } else if ((key === "ArrowLeft" || key === "ArrowRight") && !isTyping(target) && target.type !== "range") {
    const by = key === "ArrowRight" ? 1 : -1;
    if (target === $("curve")) seek(now() + by);
    else if (player.open) step(by);
    else if (target.closest(".hit")) {
      const other = by > 0 ? target.closest(".hit").nextElementSibling : target.closest(".hit").previousElementSibling;
      if (other) other.querySelector("a").focus();
    } else return;
    event.preventDefault();
  } else if ((key === "ArrowDown" || key === "Enter") && target === $("q") && !event.isComposing) {
    if (key === "ArrowDown" && $("hits").querySelector("a")) {
      event.preventDefault();
      $("hits").querySelector("a").focus();
    }
  }
});

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  asked = null;
  go({ q: $("q").value.trim(), always: false, hit: null });
});
$("q").addEventListener("search", () => { if (!$("q").value) go({ q: "" }); });
$("sort").addEventListener("change", (event) => go({ sort: event.target.value }));
$("group").addEventListener("change", (event) => go({ group: event.target.checked }));
$("find-moments").addEventListener("click", () => go({ clips: false }));
$("find-clips").addEventListener("click", () => go({ clips: true }));
$("file").addEventListener("change", (event) => { if (event.target.files[0]) upload(event.target.files[0]); event.target.value = ""; });
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => player.close());
$("like").addEventListener("click", () => like(shown.clip.id));
$("look").addEventListener("click", look);
$("ask").addEventListener("submit", ask);
$("dial").addEventListener("input", dial);
$("open-index").addEventListener("click", openIndex);
$("close-index").addEventListener("click", () => $("index").close());
$("curve").addEventListener("pointerdown", (event) => {
  const box = $("curve").getBoundingClientRect();
  seek((shown.clip.duration * (event.clientX - box.left)) / box.width);
});
player.addEventListener("close", () => {
  const before = shown;
  leave();
  shown = null;
  if (read().hit) go({ hit: null });
  const card = before && places().findIndex((hit) => keyOf(hit) === before.key);
  if (card >= 0 && document.activeElement === document.body) $("hits").children[card].querySelector("a").focus();
});
addEventListener("popstate", show);
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  const file = event.dataTransfer.files[0];
  if (file) upload(file);
});
new IntersectionObserver(([seen]) => {
  if (seen.isIntersecting && answer && answer.hits.length >= wanted && wanted < MOST) {
    wanted = Math.min(MOST, wanted + PAGE);
    search(asked, true);
  }
}, { rootMargin: "600px" }).observe($("more"));

load().then(show);
