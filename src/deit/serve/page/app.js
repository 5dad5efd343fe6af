// The page: asks the server about one image and shows what it says.

import { NoAnswer, classify, example, examples, models, setToken } from "./api.js";
import { element, showJson, showResult, showSet, showTimes } from "./answer.js";
import { forgetMaps, showMaps, showNoScore, watchLooking } from "./looking.js";
import { watchForImages } from "./picking.js";
import { bytes, counted, explained } from "./words.js";

const find = (id) => document.getElementById(id);
const TOP_K = 5;
const TRIES = 5; // of an overloaded server, one by itself and the others after its Retry-After
const MOST_CLASSES = 500; // that are listed
const METHOD = "relevance";

const now = { served: [], limits: {}, model: null, file: null, answered: null, size: null, url: null, after: null };
const asking = { models: null, answer: null, map: null }; // what stops each request that is on its way

const announce = (text) => {
  find("said").textContent = text;
};

// ---- Problems, in a live region

function clearProblem() {
  find("problem").hidden = true;
  find("problem").replaceChildren();
}

function showProblem(first, rest = "", { busy = false, actions = [] } = {}) {
  const box = find("problem");
  box.className = `card notice ${busy ? "busy" : "bad"}`;
  box.hidden = false; // before its content, which screen readers then announce
  box.replaceChildren(element("p", {}, element("strong", { text: first })));
  if (rest) box.append(element("p", { text: rest }));
  if (actions.length) {
    box.append(
      element("div", { className: "actions" }, ...actions.map(([text, act]) => {
        const button = element("button", { type: "button", text });
        button.addEventListener("click", act);
        return button;
      })),
    );
  }
}

function showError(error, again) {
  const { first, rest } = explained(error);
  if (error.kind === "token") return askForToken(error, again);
  const actions = ["away", "busy", "broken"].includes(error.kind) ? [["Try again", again]] : [];
  if (error.status === 404) actions.push(["Ask which models there are", start]);
  return showProblem(first, rest, { busy: error.kind === "busy", actions });
}

function askForToken(error, again) {
  now.after = again;
  if (!find("token-form").hidden) {
    const { first, rest } = explained(error);
    showProblem(first, rest);
  }
  find("token-form").hidden = false;
  find("token").focus();
}

function takeTokenAway() {
  if (find("token-form").hidden) return;
  find("token-form").hidden = true;
  find("choose").focus(); // or the focus would be nowhere
}

/** Waits as long as the server asked for, with a countdown; the user may try at once or stop. Resolves to "again" or "stop". */
function countdown(seconds, error, signal) {
  return new Promise((resolve) => {
    const end = performance.now() + 1000 * seconds;
    const { first, rest } = explained(error);
    const left = element("span", { ariaHidden: "true" }); // or each second would be announced
    const tick = () => {
      const remaining = Math.max(0, Math.ceil((end - performance.now()) / 1000));
      left.textContent = ` ${remaining} s left.`;
      if (!remaining) done("again");
    };
    const timer = setInterval(tick, 250);
    function done(result) {
      clearInterval(timer);
      signal.removeEventListener("abort", stopped);
      clearProblem();
      resolve(result);
    }
    const stopped = () => done("stop");
    signal.addEventListener("abort", stopped);
    showProblem(first, rest, { busy: true, actions: [["Try now", () => done("again")], ["Stop", stopped]] });
    const plan = element("p", { text: `The page tries again in ${counted(seconds, "second")}.` }, left);
    find("problem").querySelector(".actions").before(plan);
    left.textContent = ` ${seconds} s left.`;
  });
}

// ---- Asking

async function patiently(request, signal) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await request();
    } catch (error) {
      const waits = error.kind === "busy" && error.retryAfter !== null && attempt < TRIES;
      if (!waits || (await countdown(error.retryAfter, error, signal)) === "stop") throw error;
    }
  }
}

function options(extra = {}) {
  const { model, served } = now;
  const twice = served.filter(({ name }) => name === model?.name).length > 1; // else the newest version may answer
  return { model: model?.name, version: twice ? model.version : null, top_k: TOP_K, ...extra };
}

const coverage = () => Number(find("coverage").value);

const hasSets = (model) => Boolean(model?.calibrated) && model.problem_type !== "multi_label_classification";

/** Asks with the coverage; a server that refuses it is asked without, and its reason is shown in place of the set. */
async function askWithCoverage(signal) {
  const send = (extra) => patiently(() => classify(now.file, options(extra), signal), signal);
  const percent = coverage(); // the slider may move meanwhile
  const wanted = { heads: true, coverage: hasSets(now.model) ? percent : null };
  try {
    return { ...(await send(wanted)), percent, problem: "" };
  } catch (error) {
    if (wanted.coverage === null || error.reason !== "bad_option") throw error;
    return { ...(await send({ heads: true })), percent, problem: error.message };
  }
}

function showWorking() {
  find("working").hidden = !asking.answer && !asking.map;
  find("answer").setAttribute("aria-busy", String(Boolean(asking.answer)));
}

/** Does what asks for `kind`, in place of what asked for it before. `act` is given a signal that tells its end. */
async function during(kind, act) {
  asking[kind]?.abort();
  const stop = (asking[kind] = new AbortController());
  showWorking();
  try {
    await act(stop.signal);
  } finally {
    if (asking[kind] === stop) asking[kind] = null;
    showWorking();
  }
}

function tooLarge(file) {
  const limit = now.limits.max_image_bytes;
  if (!(file.size > limit)) return false;
  forget();
  showProblem(
    "The image is too large for this server.",
    `It has ${bytes(file.size)}; the server takes ${bytes(limit)}. It was not sent.`,
  );
  return true;
}

function forget() {
  now.answered = null;
  find("result").hidden = true;
  find("caption").hidden = true;
  find("waiting").hidden = false;
  forgetMaps();
}

async function ask() {
  asking.answer?.abort();
  asking.map?.abort();
  if (asking.models || !now.file || tooLarge(now.file)) return; // `start` asks when it knows the models
  clearProblem();
  announce("Asking the model.");
  await during("answer", async (signal) => {
    try {
      const { answer, roundTrip, percent, problem } = await askWithCoverage(signal);
      if (signal.aborted) return;
      takeTokenAway();
      const result = firstResult(answer);
      announce(`Answer: ${showResult(result, now.model)}`);
      now.answered = now.file;
      showSet(result, percent, problem);
      showTimes(answer.timing_ms, roundTrip);
      showJson(answer);
      await refreshModels(answer, result);
      if (!signal.aborted) explain();
    } catch (error) {
      if (signal.aborted) return;
      forget();
      announce("");
      showError(error, ask);
    }
  });
}

function firstResult(answer) {
  const [result] = Array.isArray(answer?.results) ? answer.results : [];
  if (result?.error) {
    const { message = String(result.error), reason = "" } = result.error;
    throw new NoAnswer("refused", message, { status: 422, reason });
  }
  if (!Array.isArray(result?.predictions)) throw new NoAnswer("broken", "The answer holds no predictions.");
  return result;
}

/** Asks for the maps, after the answer, which stands without them. */
function explain({ scored = false } = {}) {
  return during("map", async (signal) => {
    try {
      const wanted = options({ explain: METHOD, explain_score: scored || null });
      const { answer } = await patiently(() => classify(now.file, wanted, signal), signal);
      const { explanation } = firstResult(answer);
      const size = await now.size;
      if (signal.aborted) return;
      if (!explanation) forgetMaps("The server sent no map.");
      else if (scored) announce(showMaps(explanation, size, now.model?.preprocessing));
      else showMaps(explanation, size, now.model?.preprocessing);
    } catch (error) {
      if (signal.aborted) return;
      const { rest, first } = explained(error);
      if (scored) announce(showNoScore(`The map was not tested. ${rest || first}`));
      else forgetMaps(`There is no map for this answer. ${rest || first}`);
    }
  });
}

/** Asks again for the set alone; of an image that has no answer yet, for all of it. */
async function askForSet() {
  find("coverage-name").textContent = `${coverage()} %`;
  if (now.answered !== now.file) return asking.answer && ask();
  if (!now.file) return;
  clearProblem();
  await during("answer", async (signal) => {
    try {
      const { answer, roundTrip, percent, problem } = await askWithCoverage(signal);
      if (signal.aborted) return;
      const result = firstResult(answer);
      showSet(result, percent, problem);
      showTimes(answer.timing_ms, roundTrip);
      showJson(answer);
      announce(`Coverage ${percent} percent. ${find("set-words").textContent}`);
    } catch (error) {
      if (!signal.aborted) showError(error, askForSet);
    }
  });
}

// ---- The image

function showPicture(file) {
  if (now.url) URL.revokeObjectURL(now.url);
  now.url = URL.createObjectURL(file);
  const picture = find("picture");
  find("empty").hidden = true;
  find("shown").hidden = false;
  find("stage").classList.add("full");
  now.size = new Promise((resolve) => {
    const known = (fits) => {
      find("no-picture").hidden = fits;
      picture.parentElement.hidden = !fits;
      resolve(fits ? { width: picture.naturalWidth, height: picture.naturalHeight } : null);
      if (!fits) return;
      // Small images are enlarged, without a blur that is not theirs.
      const times = Math.min(Math.floor(320 / Math.max(picture.naturalWidth, picture.naturalHeight)), 16);
      picture.classList.toggle("tiny", times > 1);
      picture.style.width = times > 1 ? `${times * picture.naturalWidth}px` : "";
    };
    picture.onload = () => known(true);
    picture.onerror = () => known(false);
  });
  picture.alt = `The chosen image, ${file.name || "without a name"}`;
  picture.src = now.url;
}

function takeFile(file, note = "") {
  now.file = file;
  clearProblem();
  forgetMaps();
  showPicture(file);
  const facts = find("file-facts");
  facts.hidden = false;
  facts.textContent = [`${file.name || "Image"}, ${bytes(file.size)}, sent as it is.`, note].filter(Boolean).join(" ");
  markExample(file);
  ask();
}

async function showExamples() {
  let names;
  try {
    names = await examples();
  } catch {
    return; // the page works without examples
  }
  find("examples").hidden = !names.length;
  find("example-list").replaceChildren(...names.map((name) => {
    const picture = element("img", { alt: name });
    const button = element("button", { type: "button", title: name, ariaPressed: "false" }, picture);
    const loaded = example(name);
    loaded.then((file) => {
      picture.onload = () => URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(file);
    }, () => button.parentElement?.remove());
    button.addEventListener("click", async () => takeFile(await loaded));
    loaded.then((file) => chosenBy.set(file, button), () => {});
    return element("li", {}, button);
  }));
}

const chosenBy = new WeakMap();

function markExample(file) {
  for (const button of find("example-list").querySelectorAll("button")) {
    button.ariaPressed = String(chosenBy.get(file) === button);
  }
}

// ---- The models

function showModel(model) {
  now.model = model;
  const classes = model.classes ?? [];
  const size = Array.isArray(model.image_size) ? model.image_size.join(" × ") : `${model.image_size} × ${model.image_size}`;
  const facts = [
    model.version ? `Version ${model.version}` : "", counted(classes.length, "class", "classes"), `${size} pixels`,
    model.calibrated ? "calibrated" : "not calibrated",
  ];
  find("model-name").textContent = model.name;
  document.title = `${model.name}: ask the model`;
  find("model-facts").textContent = facts.filter(Boolean).join(" · ");
  find("set-controls").hidden = !hasSets(model);
  find("classes-part").hidden = !classes.length;
  find("classes-title").textContent = `All ${counted(classes.length, "class", "classes")}`;
  find("classes").replaceChildren(...classes.slice(0, MOST_CLASSES).map((text) => element("li", { text })));
  find("classes-rest").textContent =
    classes.length > MOST_CLASSES ? `The first ${MOST_CLASSES} of ${classes.length} are listed.` : "";
}

/** Asks for the models anew where an answer shows that they changed behind the page. */
async function refreshModels(answer, { predictions }) {
  const { model } = now;
  const known = new Set(model?.classes);
  if (answer.version === model?.version && predictions.every(({ label }) => known.has(label))) return;
  try {
    showModels((await models()).models);
  } catch {
    // The answer stands; the next one asks again.
  }
}

function showModels(served) {
  const same = (model) => model.name === now.model?.name;
  const before = served.find((model) => same(model) && model.version === now.model.version) ?? served.find(same);
  now.served = served;
  const select = find("model-select");
  select.replaceChildren(...served.map((model, i) => {
    const twice = served.filter(({ name }) => name === model.name).length > 1;
    return element("option", { value: String(i), text: twice ? `${model.name}, version ${model.version}` : model.name });
  }));
  find("model-choice").hidden = served.length < 2;
  select.value = String(before ? served.indexOf(before) : 0);
  showModel(before ?? served[0]);
}

async function start() {
  let known = false;
  clearProblem();
  await during("models", async (signal) => {
    try {
      const { models: served = [], limits = {} } = await patiently(models, signal);
      now.limits = limits;
      if (!served.length) throw new NoAnswer("broken", "The server has no model.");
      takeTokenAway();
      showModels(served);
      known = true;
    } catch (error) {
      if (signal.aborted) return;
      find("model-facts").textContent = "No model yet.";
      showError(error, start);
    }
  });
  if (!known) return;
  await showExamples();
  if (now.answered !== now.file && !asking.answer) ask();
}

function watch() {
  watchLooking(() => explain({ scored: true }));
  watchForImages(takeFile, (message) => showProblem(message));
  find("coverage").addEventListener("input", () => {
    find("coverage-name").textContent = `${coverage()} %`;
  });
  find("coverage").addEventListener("change", askForSet);
  find("model-select").addEventListener("change", ({ target }) => {
    showModel(now.served[Number(target.value)]);
    forget();
    ask();
  });
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(find("token").value.trim());
    find("token").value = "";
    clearProblem();
    (now.after ?? start)();
  });
  find("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(find("json").textContent);
      find("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(find("json"));
      find("copied").textContent = "Selected; copy it with Ctrl+C or Cmd+C.";
    }
  });
  find("coverage-name").textContent = `${coverage()} %`;
}

watch();
start();
