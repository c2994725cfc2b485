// Piano rolls that move as the piano plays, a list of takes to choose from, and the keys that steer it.

const $ = (id) => document.getElementById(id);
const takes = JSON.parse($("data").textContent);
const roll = $("roll"), seek = $("seek"), play = $("play");
const buttons = [...document.querySelectorAll(".takes button")];
const FOOT = 24, GUTTER = 30; // CSS pixels below and beside the notes, where times and keys are named
const BLACK = [1, 3, 6, 8, 10];
const still = matchMedia("(prefers-reduced-motion: reduce)");
const piano = new Piano(changed);
let take, lowest, highest, longest;
let width = 0, span = 12, start = -1, frame = 0;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clock = (t) => `${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, "0")}`;
const across = (t) => GUTTER + ((t - start) / span) * (width - GUTTER); // where a moment lies in the roll

function shades() { // one colour for each velocity, soft to loud
  const ramp = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const fill = ramp.createLinearGradient(0, 0, 128, 0);
  [[0, "--soft"], [0.2, "--soft"], [0.5, "--medium"], [0.8, "--loud"], [1, "--loud"]].forEach(([at, name]) => fill.addColorStop(at, css(name)));
  ramp.fillStyle = fill;
  ramp.fillRect(0, 0, 128, 1);
  const pixels = ramp.getImageData(0, 0, 128, 1).data;
  return Array.from({ length: 128 }, (_, v) => `rgb(${pixels.slice(4 * v, 4 * v + 3).join(",")})`);
}
let shade = shades();

function prepare(canvas) {
  const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  canvas.width = Math.round(w * ratio);
  canvas.height = Math.round(h * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [pen, w, h];
}

function firstAfter(t) { // the number of the first note that begins at t or later
  let low = 0, high = take.notes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (take.notes[middle][0] < t) low = middle + 1;
    else high = middle;
  }
  return low;
}

function bars(pen, left, w, h, from, to, least) { // the notes from one moment to another, in a box at the top
  const key = h / (highest - lowest), second = (w - left) / (to - from);
  pen.save();
  pen.beginPath(); pen.rect(left, 0, w - left, h); pen.clip();
  for (let i = firstAfter(from - longest); i < take.notes.length && take.notes[i][0] <= to; i++) {
    const [on, off, pitch, velocity] = take.notes[i];
    pen.fillStyle = shade[velocity];
    pen.globalAlpha = on < take.prompt ? 0.4 : 1;
    pen.fillRect(left + (on - from) * second, (highest - pitch - 0.5) * key, Math.max((off - on) * second - 0.7, least), Math.max(key - 0.6, 1));
  }
  pen.restore();
}

function drawRoll() {
  const [pen, w, all] = prepare($("notes")), h = all - FOOT, key = h / (highest - lowest);
  pen.fillStyle = css("--black-key");
  for (let p = lowest; p <= highest; p++) {
    if (BLACK.includes(p % 12)) pen.fillRect(GUTTER, (highest - p - 0.5) * key, w - GUTTER, Math.min(key, h - (highest - p - 0.5) * key));
  }
  pen.strokeStyle = css("--faint");
  pen.lineWidth = 1;
  pen.font = "11px ui-sans-serif, system-ui, sans-serif";
  for (let s = Math.ceil(start); s <= start + span && s <= take.seconds; s++) {
    const x = Math.round(across(s)) + 0.5;
    pen.globalAlpha = s % 5 ? 0.35 : 1;
    pen.beginPath(); pen.moveTo(x, 0); pen.lineTo(x, h); pen.stroke();
    pen.globalAlpha = 1;
    pen.fillStyle = css("--quiet");
    if (s % 5 === 0) pen.fillText(clock(s), Math.min(x + 3, w - 30), all - 7);
  }
  bars(pen, GUTTER, w, h, start, start + span, 2);
  pen.fillStyle = css("--accent");
  for (const [from, to] of take.again) { // what was played before
    const left = Math.max(across(from), GUTTER);
    if (to > start && from < start + span) pen.fillRect(left, h + 2, across(to) - left, 3);
  }
  pen.fillStyle = css("--quiet");
  for (let p = Math.ceil(lowest / 12) * 12; p <= highest; p += 12) pen.fillText(`C${p / 12 - 1}`, 5, Math.max((highest - p) * key, 8) + 4);
}

function drawWhole() {
  const [pen, w, h] = prepare($("whole"));
  bars(pen, 0, w, h - 5, 0, take.seconds, 1);
  pen.fillStyle = css("--accent");
  for (const [from, to] of take.again) pen.fillRect((from / take.seconds) * w, h - 4, ((to - from) / take.seconds) * w, 3);
}

function show(t) {
  const last = Math.max(0, take.seconds - span);
  // The music runs past a playhead that stands still; whoever asked for less motion gets pages.
  const from = still.matches ? Math.floor(t / span) * span : Math.min(Math.max(0, t - span / 3), last);
  if (Math.abs(from - start) > 1e-6) { start = from; drawRoll(); }
  $("playhead").style.transform = `translateX(${across(t)}px)`;
  $("here").style.transform = `translateX(${(t / take.seconds) * width}px)`;
  $("view").style.transform = `translateX(${(start / take.seconds) * width}px)`;
  $("view").style.width = `${(Math.min(span, take.seconds) / take.seconds) * width}px`;
  $("clock").textContent = `${clock(t)} / ${clock(take.seconds)}`;
  if (document.activeElement !== seek || piano.playing) seek.value = t;
  seek.setAttribute("aria-valuetext", `${clock(t)} of ${clock(take.seconds)}`);
}

function follow() {
  show(piano.time);
  frame = piano.playing ? requestAnimationFrame(follow) : 0;
}

function go(t) {
  piano.seek(t);
  show(piano.time);
}

function layout() {
  width = roll.clientWidth;
  span = Math.min(Math.max(width / 70, 5), 16, Math.max(take.seconds, 1));
  start = -1;
  drawWhole();
  show(piano.time);
}

function changed() { // it plays now, or no more
  [play, ...buttons].forEach((button) => {
    const own = button === play || takes[buttons.indexOf(button)] === take, name = button === play ? "" : ` ${button.dataset.name}`;
    button.setAttribute("aria-pressed", String(own && piano.playing));
    button.setAttribute("aria-label", (own && piano.playing ? "Pause" : "Play") + name);
    if (button !== play) button.setAttribute("aria-current", String(own));
  });
  if (piano.playing && !frame) frame = requestAnimationFrame(follow);
}

function toggle() {
  if (piano.playing) piano.stop();
  else piano.start();
  changed();
}

function choose(number) {
  take = takes[number];
  [lowest, highest, longest] = [36, 84, 0];
  for (const [on, off, pitch] of take.notes) {
    [lowest, highest, longest] = [Math.min(lowest, pitch), Math.max(highest, pitch), Math.max(longest, off - on)];
  }
  lowest--, highest++;
  piano.load(take.notes, take.seconds);
  seek.max = take.seconds;
  roll.setAttribute("aria-label", take.alt);
  $("current").textContent = take.name;
  layout();
  changed();
}

document.documentElement.classList.add("js");
choose(0);
play.addEventListener("click", toggle);
buttons.forEach((button, number) => button.addEventListener("click", () => {
  if (takes[number] !== take) choose(number);
  toggle();
}));
seek.addEventListener("input", () => go(Number(seek.value)));
roll.addEventListener("click", (event) => {
  const x = event.clientX - roll.getBoundingClientRect().left;
  go(start + (Math.max(x - GUTTER, 0) / (width - GUTTER)) * span);
});
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " ") { event.preventDefault(); toggle(); }
  else if (event.key === "ArrowLeft") go(piano.time - 5);
  else if (event.key === "ArrowRight") go(piano.time + 5);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { shade = shades(); layout(); });
new ResizeObserver(layout).observe(roll);
