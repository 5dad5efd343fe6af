// The controls of the relevance map: which head, and after which block.

import { element, say } from "./answer.js";
import { drawMap } from "./map.js";
import { capital, headName, whereStrongest } from "./words.js";

const find = (id) => document.getElementById(id);
const NONE = "";

const VERDICTS = { better: "good", "no better": "warn", worse: "warn" }; // of a score -> how it looks

let shown = null; // {maps, rows, columns, size, box, notes, scores}
let head = "both"; // the choice outlives the image
let testing = false;

/** Head -> its maps: one of each block, then the overall one. */
function mapsOf({ grid: [rows, columns], maps, overall }) {
  const all = Object.entries(maps).map(([name, blocks]) => [name, overall?.[name] ? [...blocks, overall[name]] : blocks]);
  const fits = ([, list]) => list.length && list.every((map) => map.length === rows * columns);
  return new Map(all.filter(fits));
}

function blockName(number, count) {
  return number === count - 1 ? "all blocks" : `after block ${number + 1} of ${count - 1}`;
}

/**
 * Which part of the picture the model sees: left, top, right, bottom as shares of it. A crop that is larger than the
 * resized picture lies around it. Null if that is not known.
 *
 * @param {{resize: ?Object, crop: ?number[]}} preprocessing sides to resize to, and (height, width) of the center
 */
export function seenPart({ width, height }, preprocessing) {
  if (!preprocessing) return null;
  const { resize, crop } = preprocessing;
  let [high, wide] = [height, width];
  if (resize?.shortest_edge) {
    const scale = resize.shortest_edge / Math.min(width, height);
    [high, wide] = [height * scale, width * scale];
  } else if (resize?.height && resize.width) [high, wide] = [resize.height, resize.width];
  else if (resize) return null;
  const [rows, columns] = crop ?? [high, wide];
  const [x, y] = [columns / wide / 2, rows / high / 2];
  return [0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y];
}

function redraw() {
  const canvas = find("map");
  const maps = shown?.maps.get(head);
  canvas.hidden = !maps;
  find("map-controls").hidden = !maps;
  find("map-words").hidden = !maps;
  showScore(Boolean(maps));
  if (!maps) {
    find("map-note").textContent = shown?.notes ?? "";
    return;
  }
  const slider = find("block");
  const number = Number(slider.value);
  const name = blockName(number, maps.length);
  slider.setAttribute("aria-valuetext", name);
  find("block-name").textContent = name;
  drawMap(canvas, shown.size, maps[number], shown.rows, shown.columns, shown.box);
  const words = whereStrongest(maps[number], shown.rows, shown.columns);
  find("map-words").textContent = words;
  canvas.setAttribute("aria-label", `Relevance map: ${headName(head)}, ${name}. ${words}`);
  find("map-note").textContent = shown.notes;
}

/** Shows the score of the overall map of the chosen head, or the button that asks for it. */
function showScore(wanted) {
  const score = shown?.scores?.[head];
  const words = score ? `${capital(headName(head))}, all blocks. ${score.description}` : "";
  find("map-test").hidden = !wanted;
  find("map-untested").hidden = Boolean(score);
  say("map-score", words, VERDICTS[score?.verdict]);
}

function choices() {
  const names = [...shown.maps.keys()];
  const legend = find("map-heads").querySelector("legend");
  find("map-heads").replaceChildren(
    legend,
    ...[NONE, ...names].map((name) => {
      const input = element("input", { type: "radio", name: "map-head", value: name, checked: name === head });
      input.addEventListener("change", () => {
        head = name;
        redraw();
      });
      const text = name === NONE ? "Image only" : capital(headName(name));
      return element("label", {}, input, element("span", { text }));
    }),
  );
}

/** @param {Function} test asks the server for the score of the maps */
export function watchLooking(test) {
  find("block").addEventListener("input", redraw);
  find("test-map").addEventListener("click", async ({ target }) => {
    if (testing) return;
    testing = true;
    target.textContent = "Testing …";
    await test();
    testing = false;
    target.textContent = "Test the map";
    const isLost = [target, document.body].includes(document.activeElement); // the button goes when there is a score
    if (find("map-untested").hidden && isLost) find("map-score").focus();
  });
}

/** Says why the maps have no score, and returns that. */
export function showNoScore(why) {
  say("map-score", why);
  return why;
}

/** Shows no map, and the reason if there is one to tell. */
export function forgetMaps(note = "") {
  shown = null;
  find("map").hidden = true;
  find("where").hidden = !note;
  find("map-heads").hidden = true;
  find("map-controls").hidden = true;
  find("map-words").hidden = true;
  find("map-test").hidden = true;
  find("map-note").textContent = note;
}

/** Shows the maps of an answer over the picture. Returns what it says of their scores. */
export function showMaps(explanation, size, preprocessing) {
  if (!size) return forgetMaps("The browser cannot show the image, so it shows no map over it. The server sent one.");
  const maps = mapsOf(explanation);
  if (!maps.size) return forgetMaps("The server sent no map.");
  const [rows, columns] = explanation.grid;
  const seen = seenPart(size, preprocessing);
  shown = { maps, rows, columns, size, box: seen ?? [0, 0, 1, 1], notes: notesOf(explanation, seen), scores: explanation.score };
  if (!maps.has(head) && head !== NONE) head = [...maps.keys()][0];
  const slider = find("block");
  const last = [...maps.values()][0].length - 1;
  const before = Number(slider.max) === last ? slider.value : last;
  slider.max = String(last);
  slider.value = String(before);
  find("where").hidden = false;
  find("map-heads").hidden = false;
  choices();
  redraw();
  return find("map-score").textContent;
}

function notesOf({ target, notes = [] }, seen) {
  const said = target ? [`The brighter, the more it speaks for ${target}.`] : [];
  if (!seen) said.push("Which part of the image the model saw is not known; the map is drawn over all of it.");
  else if (seen[0] > 0.005 || seen[1] > 0.005) said.push("The model does not see the darkened edge.");
  return [...said, ...notes].join(" ");
}
