// Writes an answer onto the page. Everything from outside goes through textContent: a class name is no HTML.

import { capital, counted, headName, listed, milliseconds, percent } from "./words.js";

const find = (id) => document.getElementById(id);

export function element(tag, { text, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export function say(id, text, kind = "") {
  const node = find(id);
  node.textContent = text;
  node.hidden = !text;
  if (kind !== null) node.className = `remark ${kind}`.trim();
}

function bars(list, predictions, number) {
  const largest = Math.max(...predictions.map(({ score }) => Math.abs(score)), 1e-9);
  list.replaceChildren(
    ...predictions.map(({ label, score }) => {
      const fill = element("span");
      const share = number ? Math.abs(score) / largest : score;
      fill.style.setProperty("--share", String(Math.min(Math.max(share, 0), 1) || 0));
      return element(
        "li", {},
        element("span", { className: "name", text: label }),
        element("span", { className: "share", text: number ? score.toPrecision(4) : percent(score) }),
        element("span", { className: "track", ariaHidden: "true" }, fill),
      );
    }),
  );
}

/** Shows all of a result but its set and its map. Returns one sentence that says it. */
export function showResult(result, model) {
  const number = model?.problem_type === "regression";
  const several = model?.problem_type === "multi_label_classification";
  const [best] = result.predictions;
  find("waiting").hidden = true;
  find("result").hidden = false;
  const said = !best ? "" : number ? best.score.toPrecision(4) : percent(best.score);
  find("caption").hidden = !best;
  find("caption").replaceChildren(element("span", { text: best?.label ?? "" }), element("span", { text: said }));
  find("verdict-line").textContent = number ? "The value" : several ? "The likeliest label" : "The likeliest class";
  find("verdict").textContent = !best ? "No class" : number ? `${best.label}: ${said}` : best.label;
  bars(find("top"), result.predictions, number);
  find("calibration").textContent = number
    ? "A number that the model estimates."
    : result.calibrated
      ? "Calibrated on images that the model had not learned from."
      : "Not calibrated: these are the model's own scores, which are often too sure.";
  if (result.merged) {
    find("calibration").textContent += ` The server was overloaded and merged ${result.merged} tokens in each block, which can change the answer a little.`;
  }
  showOutlier(result);
  showHeads(result.heads);
  return best ? `${best.label}, ${said}.` : "No class.";
}

function showOutlier({ outlier_score: score, is_outlier: outlier }) {
  if (typeof score !== "number") {
    return say("outlier", "Whether the image is unlike the training images is not known: the model has no record of them.");
  }
  const distance = `distance ${score.toFixed(2)}; the limit is 1`;
  return outlier
    ? say("outlier", `Unlike the training images (${distance}). The answer may mean nothing.`, "warn")
    : say("outlier", `No sign that it is unlike the training images (${distance}).`, "good");
}

function showHeads(heads) {
  const names = Object.keys(heads ?? {});
  find("heads-part").hidden = names.length < 2;
  if (names.length < 2) return;
  find("heads").replaceChildren(
    ...names.map((name) => {
      const list = element("ol", { className: "bars" });
      bars(list, heads[name].slice(0, 3), false);
      return element("div", {}, element("h3", { text: capital(headName(name)) }), list);
    }),
  );
  const best = names.map((name) => ({ name, ...heads[name][0] }));
  if (best.every(({ label }) => label === best[0].label)) {
    return say("heads-words", `The heads agree: ${best[0].label}.`, "good");
  }
  const said = best.map(({ name, label, score }) => `the ${headName(name)} says ${label} (${percent(score)})`);
  return say("heads-words", `The heads disagree: ${listed(said)}. The answer above combines them.`, "warn");
}

/** Shows the classes that are possible at a coverage, or why that is not known. */
export function showSet(result, coverage, problem) {
  const { set, interval, named } = result;
  find("set").replaceChildren(...(set ?? named ?? []).map((label) => element("li", { text: label })));
  find("set").hidden = !(set ?? named)?.length;
  const promise = `For at least ${coverage} of 100 images like those of the calibration, on average`;
  if (problem) find("set-words").textContent = problem;
  else if (set) {
    find("set-words").textContent = `${counted(set.length, "class", "classes")}. ${promise}, the set that is made this way holds the true one.`;
  } else if (interval) {
    const [low, high] = interval.map((end) => end.toPrecision(4));
    find("set-words").textContent = `Between ${low} and ${high}. ${promise}, the interval that is made this way holds the true value.`;
  } else if (named) find("set-words").textContent = `${counted(named.length, "label")} above the thresholds of the calibration.`;
  else if (result.calibrated) find("set-words").textContent = "This model may name several labels, so it has no set of possible classes.";
  else find("set-words").textContent = "Not known: this model has no calibration. Run deit calibrate on held-out images.";
}

export function showTimes(timing, roundTrip) {
  const rows = [
    ["Decode", timing?.decode], ["Queue", timing?.queue], ["Compute", timing?.compute],
    ["In the server", timing?.total], ["Round trip", roundTrip],
  ];
  find("time").replaceChildren(
    ...rows
      .filter(([, value]) => typeof value === "number")
      .map(([name, value]) =>
        element("div", {}, element("dt", { text: name }), element("dd", { text: milliseconds(value) })),
      ),
  );
}

export function showJson(answer) {
  find("json").textContent = JSON.stringify(answer, null, 2);
  find("copied").textContent = "";
}
