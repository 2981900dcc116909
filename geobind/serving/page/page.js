// The page of `geobind serve`: queries, maps, nearest tiles, and what a place looks and sounds like.
const base = new URL(".", location.href).href;
const $ = (id) => document.getElementById(id);
const RECORD_S = 10;
const ORDER = ["text", "sound", "image", "place", "numbers", "file"];
const FILES = {image: "image/*,.tif,.tiff", sound: "audio/*", file: ""};

let about;
let active = "a";
let comparing = false;
let chosen = null;
let maplibre = null;
const fresh = () => ({parts: {}, answer: null, asked: 0});
const queries = {a: fresh(), b: fresh()};
const maps = {};
let touched = false;  // the person has chosen what the map shows
let view = null;

function make(tag, facts = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...inside.filter((one) => one != null));
  return node;
}

function say(words, wrong = false) {
  $("status").textContent = words;
  $("status").classList.toggle("wrong", wrong);
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(base + path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error || `The server answered ${answer.status}.`);
  return body;
}

const degrees = (lat, lon) => lat == null ? "" :
  `${Math.abs(lat).toFixed(3)}°\u00a0${lat < 0 ? "S" : "N"} ${Math.abs(lon).toFixed(3)}°\u00a0${lon < 0 ? "W" : "E"}`;
const count = (number) => number.toLocaleString("en");
const signed = (number) => number.toFixed(2).replace("-", "−");
const title = (name) => name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

// The form -------------------------------------------------------------------------------------------

function drawForm() {
  const shown = queries[active];
  $("parts").replaceChildren(...about.modalities.map((modality) => drawPart(modality, shown.parts)));
}

function drawPart(modality, parts) {
  const {name, widget} = modality;
  const part = parts[name];
  const row = make("div", {class: "row"});
  const dropped = (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault();
  const kind = ["text", "place", "numbers"].includes(widget) ? "part" : "part files";
  const box = make("div", {class: kind, role: "group", "aria-label": title(name), "data-modality": name}, make("span", {class: "name"}, title(name)), row);
  if (widget === "text") {
    row.append(make("input", {
      type: "text", maxlength: String(about.limits.text), "aria-label": title(name), value: part?.text ?? "",
      placeholder: "deep snow", enterkeyhint: "search",
      oninput: (event) => setPart(name, event.target.value.trim() ? {text: event.target.value} : null),
    }));
  } else if (widget === "place") {
    row.append(
      make("input", {
        type: "text", "aria-label": `${title(name)}: latitude, longitude`, placeholder: "46.95, 7.44",
        value: part?.place ? part.place.join(", ") : "", inputmode: "text",
        oninput: (event) => setPart(name, parsePlace(event.target.value)),
      }),
      make("button", {type: "button", onclick: () => takeCentre(name)}, "Map centre"),
    );
  } else if (widget === "numbers") {
    row.append(make("input", {
      type: "text", "aria-label": `${title(name)}: numbers with commas between`, placeholder: "0.5, 12, 3", title: modality.accepts,
      value: part?.numbers ? part.numbers.join(", ") : "", inputmode: "text",
      oninput: (event) => setPart(name, parseNumbers(event.target.value)),
    }));
  } else {
    const input = make("input", {
      type: "file", accept: FILES[widget] ?? "", "aria-label": `${title(name)}: choose a file`,
      onchange: (event) => event.target.files[0] && upload(name, event.target.files[0]),
    });
    row.append(make("label", {class: "file"}, "Choose…", input));
    box.addEventListener("dragover", dropped);
    box.addEventListener("drop", (event) => { dropped(event); if (event.dataTransfer.files[0]) upload(name, event.dataTransfer.files[0]); });
    if (widget === "sound" && navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode) {
      row.append(make("button", {type: "button", "aria-pressed": "false", onclick: (event) => record(name, event.currentTarget)}, "Record"));
    }
    if (part) box.append(drawGiven(name, part));
  }
  const weight = make("input", {
    type: "range", min: "-1", max: "1", step: "0.05", value: String(part?.weight ?? 1), "aria-label": `Weight of ${title(name)}`,
    oninput: (event) => {
      const now = queries[active].parts[name];
      event.target.nextElementSibling.textContent = signed(Number(event.target.value));
      if (now) { now.weight = Number(event.target.value); askSoon(); }
    },
  });
  const slide = make("label", {class: "slide"}, make("span", {}, "Weight"), weight, make("output", {}, signed(part?.weight ?? 1)));
  slide.hidden = !part;
  box.append(slide);
  return box;
}

function drawGiven(name, part) {
  const shown = part.url
    ? part.kind === "sound" ? make("audio", {controls: true, src: part.url, "aria-label": part.name})
      : make("img", {src: part.url, alt: part.name, onerror: (event) => event.target.remove()})
    : null;
  return make("div", {class: "given"}, shown, make("span", {}, part.name),
    make("button", {type: "button", "aria-label": `Remove ${title(name)}`, onclick: () => { setPart(name, null); drawForm(); ask(); }}, "×"));
}

function setPart(name, value, shown = active) {
  const parts = queries[shown].parts;
  if (value) parts[name] = {weight: parts[name]?.weight ?? 1, ...value};
  else delete parts[name];
  const slide = document.querySelector(`[data-modality="${CSS.escape(name)}"] .slide`);
  if (slide && shown === active) slide.hidden = !value;
}

function parsePlace(words) {
  const found = words.match(/^\s*(-?\d+(?:\.\d+)?)\s*[,; ]\s*(-?\d+(?:\.\d+)?)\s*$/);
  const [lat, lon] = found ? [Number(found[1]), Number(found[2])] : [NaN, NaN];
  return Math.abs(lat) <= 90 && Math.abs(lon) <= 180 ? {place: [lat, lon]} : null;
}

function parseNumbers(words) {
  const numbers = words.trim().split(/[\s,;]+/).map(Number);
  return words.trim() && numbers.every(Number.isFinite) ? {numbers} : null;
}

function takeCentre(name) {
  if (!maps[active]) return;
  const {lat, lng} = maps[active].getCenter().wrap();
  setPart(name, {place: [Number(lat.toFixed(4)), Number(lng.toFixed(4))]});
  drawForm();
  ask();
}

async function upload(name, file) {
  const shown = active;
  if (file.size > about.limits.upload) return say(`The file is larger than ${Math.round(about.limits.upload / 2 ** 20)} MB.`, true);
  say(`Reading ${file.name || "the recording"}.`);
  try {
    const {embedding} = await call(`api/embed/${encodeURIComponent(name)}`, {method: "POST", body: file});
    const kind = about.modalities.find((one) => one.name === name).widget;
    setPart(name, {embedding, name: file.name || "Recording", kind, url: URL.createObjectURL(file)}, shown);
    if (shown === active) drawForm();
    await ask(shown);
  } catch (error) {
    say(error.message, true);
  }
}

// The microphone: browsers record WebM or MP4, which not every reader knows; WAV is a header and the samples.

let recording = null;

async function record(name, button) {
  if (recording) return recording.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: true});
  } catch {
    return say("The microphone cannot be used; the browser may ask for leave, or needs https.", true);
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule(base + "page/recorder.js");
  const node = new AudioWorkletNode(context, "recorder");
  const blocks = [];
  node.port.onmessage = (event) => blocks.push(event.data);
  context.createMediaStreamSource(stream).connect(node).connect(context.destination);
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Stop";
  say(`Recording, at most ${RECORD_S} seconds.`);
  const timer = setTimeout(() => recording.stop(), RECORD_S * 1000);
  recording = {
    async stop() {
      recording = null;
      clearTimeout(timer);
      stream.getTracks().forEach((track) => track.stop());
      await context.close();
      button.setAttribute("aria-pressed", "false");
      button.textContent = "Record";
      await upload(name, new File([encodeWav(blocks, context.sampleRate)], "Recording.wav", {type: "audio/wav"}));
    },
  };
}

function encodeWav(blocks, rate) {
  const length = blocks.reduce((sum, block) => sum + block.length, 0);
  const bytes = new DataView(new ArrayBuffer(44 + 2 * length));
  const letters = (at, word) => [...word].forEach((letter, n) => bytes.setUint8(at + n, letter.charCodeAt(0)));
  letters(0, "RIFF"); bytes.setUint32(4, 36 + 2 * length, true); letters(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true);
  bytes.setUint32(24, rate, true); bytes.setUint32(28, 2 * rate, true);
  bytes.setUint16(32, 2, true); bytes.setUint16(34, 16, true);
  letters(36, "data"); bytes.setUint32(40, 2 * length, true);
  let at = 44;
  for (const block of blocks) for (const value of block) {
    bytes.setInt16(at, Math.max(-1, Math.min(1, value)) * 32767, true);
    at += 2;
  }
  return bytes.buffer;
}

// Asking ---------------------------------------------------------------------------------------------

let soon = 0;
const askSoon = () => { clearTimeout(soon); soon = setTimeout(ask, 200); };

function describe(query) {
  const words = Object.entries(query.parts).map(([name, part]) => {
    const what = part.text ? `“${part.text}”` : part.place ? degrees(...part.place) : part.numbers ? `${part.numbers.slice(0, 4).join(", ")}${part.numbers.length > 4 ? " …" : ""}` : part.name;
    return (part.weight === 1 ? "" : `${signed(part.weight)} × `) + what;
  });
  return words.join(" + ");
}

async function ask(shown = active) {
  const query = queries[shown];
  const parts = Object.entries(query.parts).map(([modality, {weight, text, place, numbers, embedding}]) => ({modality, weight, text, place, numbers, embedding}));
  saveLink();
  if (!parts.length) {
    query.answer = null;
    showAnswer(shown);
    return say("Give words, a sound, a picture, numbers or a place, then Show.");
  }
  const number = ++query.asked;
  const began = performance.now();
  try {
    const answer = await call("api/query", {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify({parts})});
    if (number !== query.asked) return;
    query.answer = answer;
    showAnswer(shown);
    const best = answer.nearest[0];
    if (shown === active) say(`${answer.nearest.length} nearest of ${count(about.archive.rows)}; best ${signed(best.similarity)}` +
      (best.lat == null ? "" : ` at ${degrees(best.lat, best.lon)}`) + `. ${Math.round(performance.now() - began)} ms.`);
  } catch (error) {
    if (number === query.asked) say(error.message, true);
  }
}

function showAnswer(shown) {
  const query = queries[shown];
  const caption = document.querySelector(`.pane[data-query="${shown}"] .caption`);
  caption.hidden = !query.answer && !comparing;
  caption.textContent = (comparing ? `${shown.toUpperCase()}: ` : "") + (query.answer ? describe(query) : "no query yet");
  drawAnswerOnMap(shown);
  if (shown !== active) return;
  const {answer} = query;
  $("results").hidden = !answer;
  if (!answer) return;
  $("low").textContent = signed(answer.low);
  $("high").textContent = signed(answer.high);
  const mapped = about.archive.mapped;
  document.querySelector(".legend").hidden = !mapped;
  document.querySelector("label[for=opacity]").hidden = !mapped;
  $("cog").hidden = !mapped;
  $("geojson").href = `${base}api/nearest/${answer.name}.geojson`;
  $("cog").href = `${base}api/map/${answer.name}.tif`;
  $("gallery").replaceChildren(...answer.nearest.map((found, n) => make("li", {}, drawTile(found, `${n + 1} of ${answer.nearest.length}`))));
}

function drawTile(found, order) {
  const picture = about.pictures
    ? make("img", {src: `${base}api/row/${found.row}/picture/160`, alt: "", loading: "lazy", onerror: (event) => event.target.remove()})
    : null;
  const where = degrees(found.lat, found.lon) || found.id;
  const label = `Tile ${order}, similarity ${signed(found.similarity)}, ${where}`;
  return make("button", {
    type: "button", class: "tile", "aria-label": label, title: where, "data-row": String(found.row),
    onclick: () => { if (found.lat != null) fly(found); look(`api/row/${found.row}`); },
  }, picture, make("span", {"aria-hidden": "true"}, signed(found.similarity)));
}

// Here -----------------------------------------------------------------------------------------------

let looked = 0;

async function look(path) {
  const number = ++looked;
  try {
    const found = await call(path);
    if (number !== looked) return;
    if (found.row == null) return say("There is no tile here.");
    showHere(found);
  } catch (error) {
    say(error.message, true);
  }
}

function showHere(found) {
  chosen = found;
  for (const tile of document.querySelectorAll(".tile")) tile.setAttribute("aria-current", String(tile.dataset.row === String(found.row)));
  const answer = queries[active].answer;
  $("here-title").textContent = found.lat == null ? `Here: ${found.id}` : `Here: ${degrees(found.lat, found.lon)}`;
  const body = [];
  if (about.pictures) body.push(make("img", {class: "here-picture", src: `${base}api/row/${found.row}/picture/320`, alt: `The tile at ${degrees(found.lat, found.lon) || found.id}`, width: "320", height: "320", onerror: (event) => event.target.remove()}));
  const rank = answer?.nearest.findIndex((one) => one.row === found.row) ?? -1;
  if (rank >= 0) body.push(make("p", {class: "small"}, `Number ${rank + 1} of the nearest, similarity ${signed(answer.nearest[rank].similarity)}`));
  for (const bank of found.banks) {
    const items = bank.items.map((item) => make("li", {},
      item.picture ? make("img", {src: item.picture, alt: ""}) : null,
      make("div", {},
        item.words ? make("p", {}, item.words) : make("p", {class: "small"}, item.name),
        item.sound ? make("audio", {controls: true, src: item.sound, "aria-label": item.name}) : null,
        make("p", {class: "small"}, `similarity ${signed(item.similarity)}`))));
    body.push(make("h3", {}, `Nearest ${title(bank.modality).toLowerCase()}`), make("ul", {class: "bank"}, ...items));
  }
  if (found.like.length) {
    body.push(make("h3", {}, "Places like this"), make("ul", {class: "like"}, ...found.like.map((one, n) => make("li", {}, drawTile(one, `${n + 1} of ${found.like.length} like this`)))));
  }
  $("here-body").replaceChildren(...body);
  $("here").hidden = false;
  drawChosen();
  $("here").scrollIntoView({block: matchMedia("(max-width: 820px)").matches ? "start" : "nearest"});
  say(`Showing what is here: ${degrees(found.lat, found.lon)}.`);
}

// Maps -----------------------------------------------------------------------------------------------

async function startMaps() {
  if (!about.extent) { $("maps").hidden = true; document.querySelector("main").style.display = "block"; return; }
  const sheet = make("link", {rel: "stylesheet", href: base + "page/maplibre-gl.css"});
  document.head.append(sheet);
  try {
    maplibre = await import("./maplibre-gl.mjs");
    maplibre.setWorkerUrl(base + "page/maplibre-gl-worker.mjs");
    startMap("a");
    if (comparing) startMap("b");
  } catch (error) {
    $("nomap").hidden = false;
  }
}

function bounds() {
  const [west, south, east, north] = about.extent;
  return [[west, south], [east < west ? east + 360 : east, north]];
}

function startMap(shown) {
  if (maps[shown] || !maplibre) return;
  const sources = {}, layers = [];
  if (about.scene) {
    sources.scene = {type: "raster", tiles: [`${base}api/scene/{z}/{x}/{y}`], tileSize: 256, maxzoom: about.scene.zoom, bounds: about.extent};
    layers.push({id: "scene", type: "raster", source: "scene"});
  }
  const at = view ? {center: [view.lon, view.lat], zoom: view.zoom} : {bounds: bounds(), fitBoundsOptions: {padding: 20}};
  const map = new maplibre.Map({
    container: `map-${shown}`, style: {version: 8, sources, layers}, ...at, attributionControl: false, dragRotate: false,
    pitchWithRotate: false, touchPitch: false, maxZoom: 22, renderWorldCopies: true, fadeDuration: 0,
  });
  map.touchZoomRotate.disableRotation();
  map.addControl(new maplibre.NavigationControl({showCompass: false}), "top-right");
  map.addControl(new maplibre.ScaleControl({}), "bottom-left");
  map.getCanvas().setAttribute("aria-label", `Map of query ${shown.toUpperCase()}. Arrow keys move it, plus and minus zoom, Enter looks at its middle.`);
  map.on("click", (event) => lookAt(event.lngLat));
  map.getCanvas().addEventListener("keydown", (event) => { if (event.key === "Enter") lookAt(map.getCenter()); });
  map.on("error", (event) => {
    // A query that the server no longer keeps is asked again.
    if (event.error?.status === 404 && String(event.error.url).includes("/api/map/")) askSoon();
  });
  map.on("movestart", (event) => { if (event.originalEvent) touched = true; });
  map.on("move", () => follow(shown));
  map.on("moveend", saveView);
  map.on("load", () => { map.ready = true; drawAnswerOnMap(shown); drawChosen(); });
  maps[shown] = map;
}

let following = false;

function follow(shown) {
  const other = maps[shown === "a" ? "b" : "a"];
  if (!other || !comparing || following) return;
  following = true;
  other.jumpTo({center: maps[shown].getCenter(), zoom: maps[shown].getZoom()});
  following = false;
}

function lookAt(place) {
  const {lat, lng} = place.wrap();
  look(`api/here?lat=${lat.toFixed(6)}&lon=${lng.toFixed(6)}`);
}

const points = (rows) => ({type: "FeatureCollection", features: rows.filter((one) => one.lat != null).map((one) => (
  {type: "Feature", properties: {}, geometry: {type: "Point", coordinates: [one.lon, one.lat]}}))});

function takeAway(map, name) {
  if (map.getLayer(name)) map.removeLayer(name);
  if (map.getSource(name)) map.removeSource(name);
}

function drawAnswerOnMap(shown) {
  const map = maps[shown];
  if (!map?.ready) return;
  const {answer} = queries[shown];
  for (const name of ["answer", "nearest"]) takeAway(map, name);
  if (!answer) return;
  if (about.archive.mapped) {
    map.addSource("answer", {type: "raster", tiles: [`${base}api/map/${answer.name}/{z}/{x}/{y}`], tileSize: 256, maxzoom: about.scene?.zoom ?? 16, bounds: about.extent});
    map.addLayer({id: "answer", type: "raster", source: "answer", paint: {"raster-opacity": Number($("opacity").value), "raster-resampling": "nearest"}});
  }
  map.addSource("nearest", {type: "geojson", data: points(answer.nearest)});
  map.addLayer({id: "nearest", type: "circle", source: "nearest", paint: {"circle-radius": 4, "circle-color": "#fff", "circle-stroke-color": "#111", "circle-stroke-width": 1.5}});
  drawChosen();
}

function drawChosen() {
  for (const map of Object.values(maps)) {
    if (!map.ready) continue;
    takeAway(map, "chosen");
    if (!chosen) continue;
    map.addSource("chosen", {type: "geojson", data: points([chosen])});
    map.addLayer({id: "chosen", type: "circle", source: "chosen", paint: {"circle-radius": 10, "circle-color": "#0000", "circle-stroke-color": "#e11d48", "circle-stroke-width": 3}});
  }
}

function fly(found) {
  touched = true;
  const map = maps[active];
  if (!map) return;
  const quick = matchMedia("(prefers-reduced-motion: reduce)").matches;
  map.easeTo({center: [found.lon, found.lat], duration: quick ? 0 : 400});
}

function saveView() {
  const map = maps.a;
  if (!map || !touched) return;
  const {lat, lng} = map.getCenter().wrap();
  view = {lat, lon: lng, zoom: map.getZoom()};
  saveLink();
}

// The link that holds the queries ----------------------------------------------------------------------

function saveLink() {
  const words = new URLSearchParams();
  for (const [shown, query] of Object.entries(queries)) {
    for (const [name, part] of Object.entries(query.parts)) {
      const key = `${shown}.${name}`;
      if (part.text) words.set(key, part.text);
      if (part.place) words.set(key, part.place.join(","));
      if (part.numbers) words.set(key, part.numbers.join(","));
      if (part.embedding) { words.set(`${key}.v`, part.embedding); words.set(`${key}.n`, part.name); }
      if (part.weight !== 1) words.set(`${key}.w`, String(part.weight));
    }
  }
  if (comparing) words.set("compare", "1");
  if (view) words.set("at", `${view.lat.toFixed(4)},${view.lon.toFixed(4)},${view.zoom.toFixed(2)}`);
  history.replaceState(null, "", `#${words}`);
}

function readLink() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const shown of ["a", "b"]) {
    queries[shown] = fresh();
    for (const {name, widget} of about.modalities) {
      const key = `${shown}.${name}`;
      const given = words.get(key);
      const embedding = words.get(`${key}.v`);
      const weight = Math.max(-1, Math.min(1, Number(words.get(`${key}.w`) ?? 1))) || 0;
      let part = null;
      if (embedding && !["text", "place", "numbers"].includes(widget)) part = {embedding, name: (words.get(`${key}.n`) ?? "from the link").slice(0, 80), kind: widget};
      else if (given && widget === "text") part = {text: given.slice(0, about.limits.text)};
      else if (given && widget === "place") part = parsePlace(given);
      else if (given && widget === "numbers") part = parseNumbers(given);
      if (part) queries[shown].parts[name] = {...part, weight};
    }
  }
  const at = words.get("at")?.split(",").map(Number);
  if (at?.length === 3 && at.every(Number.isFinite) && Math.abs(at[0]) <= 90) touched = true, view = {lat: at[0], lon: at[1], zoom: at[2]};
  setComparing(words.get("compare") === "1");
}

async function copyLink() {
  saveLink();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("The link is in the address bar.");
  }
}

function setComparing(on) {
  comparing = on;
  $("compare").setAttribute("aria-pressed", String(on));
  $("which").hidden = !on;
  document.querySelector('.pane[data-query="b"]').hidden = !on;
  if (!on && active === "b") setActive("a");
  if (on) startMap("b");
  for (const map of Object.values(maps)) map.resize();
  if (maps.a && !touched) maps.a.fitBounds(bounds(), {padding: 20, duration: 0});
  if (on) follow("a");
  for (const shown of ["a", "b"]) if (about) showAnswer(shown);
}

function setActive(shown) {
  active = shown;
  document.querySelector(`#which input[value="${shown}"]`).checked = true;
  drawForm();
  showAnswer(shown);
}

// Start ----------------------------------------------------------------------------------------------

async function start() {
  try {
    about = await call("api/about");
  } catch (error) {
    return say(error.message, true);
  }
  about.modalities.sort((one, other) => ORDER.indexOf(one.widget) - ORDER.indexOf(other.widget));
  document.title = `${about.archive.name} – geobind`;
  $("title").textContent = about.archive.name;
  $("facts").textContent = `${count(about.archive.rows)} places, ${title(about.archive.modality).toLowerCase()}`;
  $("ramp").style.background = `linear-gradient(to right, ${about.colours.join(", ")})`;
  readLink();
  drawForm();
  say("Give words, a sound, a picture, numbers or a place, then Show.");
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  // The part of the address after # holds the query.
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("ask").focus(); });
  $("clear").addEventListener("click", () => { queries[active] = fresh(); drawForm(); ask(); document.querySelector("#parts input")?.focus(); });
  $("compare").addEventListener("click", () => { setComparing(!comparing); saveLink(); });
  $("link").addEventListener("click", copyLink);
  $("here-close").addEventListener("click", () => { chosen = null; $("here").hidden = true; drawChosen(); });
  for (const input of document.querySelectorAll("#which input")) input.addEventListener("change", () => setActive(input.value));
  $("opacity").addEventListener("input", (event) => {
    event.target.nextElementSibling.textContent = `${Math.round(event.target.value * 100)} %`;
    for (const map of Object.values(maps)) if (map.getLayer("answer")) map.setPaintProperty("answer", "raster-opacity", Number(event.target.value));
  });
  $("opacity").nextElementSibling.textContent = `${Math.round($("opacity").value * 100)} %`;
  addEventListener("hashchange", () => { readLink(); drawForm(); ask("a"); if (comparing) ask("b"); });
  for (const shown of ["a", "b"]) if (Object.keys(queries[shown].parts).length) ask(shown);
  await startMaps();
}

start();
