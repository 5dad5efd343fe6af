// Numbers and errors in plain words.

/** A share as a percentage that never claims certainty that is not there. */
export function percent(share) {
  const value = 100 * share;
  if (!Number.isFinite(value)) return "not a number";
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  return `${value.toFixed(1)} %`;
}

export function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function bytes(count) {
  if (count < 1024) return `${count} bytes`;
  if (count < 1024 ** 2) return `${(count / 1024).toFixed(0)} KiB`;
  return `${(count / 1024 ** 2).toFixed(1).replace(/\.0$/, "")} MiB`;
}

export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export const listed = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;

const HEADS = { class: "class head", distillation: "distillation head", both: "both heads", average: "both heads" };

export const headName = (head) => HEADS[head] ?? head;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** What an error means: a first sentence in plain words, and what the server said. */
export function explained(error) {
  switch (error.kind) {
    case "away":
      return { first: "The server cannot be reached.", rest: `${error.message} Is it still running, and are you online?`.trim() };
    case "busy":
      return error.status === 503
        ? { first: "The server is starting or stopping.", rest: error.message }
        : { first: "The server has more requests than it can answer just now.", rest: error.message };
    case "token":
      return { first: "The server did not accept the token.", rest: error.message };
    case "refused":
      return { first: refusal(error), rest: error.message };
    case "broken":
      return { first: "The server failed to answer. This is not the fault of your image.", rest: error.message || `Status ${error.status}.` };
    default:
      return { first: "The page failed. Reload it and try again.", rest: String(error.message ?? error) };
  }
}

function refusal({ status }) {
  if (status === 413) return "The image is too large for this server.";
  if (status === 415 || status === 422) return "The server cannot read this file as an image.";
  if (status === 404) return "The server does not know this model or address.";
  if (status === 408) return "The server did not get to the image in time.";
  return "The server refused the request.";
}

/** Where the strongest part of a map lies, for those who cannot see it, and as a check for those who can. */
export function whereStrongest(map, rows, columns) {
  const sums = new Array(9).fill(0);
  const counts = new Array(9).fill(0);
  let least = Infinity;
  let most = -Infinity;
  map.forEach((value, i) => {
    const row = Math.min(2, Math.floor((3 * (Math.floor(i / columns) + 0.5)) / rows));
    const column = Math.min(2, Math.floor((3 * ((i % columns) + 0.5)) / columns));
    sums[3 * row + column] += value;
    counts[3 * row + column] += 1;
    least = Math.min(least, value);
    most = Math.max(most, value);
  });
  if (!(most > least)) return "The map is the same everywhere.";
  const means = sums.map((sum, i) => (counts[i] ? sum / counts[i] : -Infinity));
  const best = means.indexOf(Math.max(...means));
  const place = [
    "at the upper left", "at the top", "at the upper right", "at the left", "in the center", "at the right",
    "at the lower left", "at the bottom", "at the lower right",
  ][best];
  return `Strongest ${place} of what the model sees.`;
}
