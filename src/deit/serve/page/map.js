// Draws a relevance map over the image, where the model saw it.

// Anchors of matplotlib's "magma", from dark to bright.
const COLORS = [[0, 0, 4], [44, 17, 96], [114, 31, 129], [182, 55, 122], [241, 96, 93], [254, 174, 119], [252, 253, 191]];
const MOST_PIXELS = 1200; // of the longer side of the canvas

function color(value) {
  const place = Math.min(Math.max(value, 0), 1) * (COLORS.length - 1);
  const low = Math.min(Math.floor(place), COLORS.length - 2);
  return COLORS[low].map((from, i) => Math.round(from + (COLORS[low + 1][i] - from) * (place - low)));
}

function gridOf(map, rows, columns) {
  const grid = document.createElement("canvas");
  grid.width = columns;
  grid.height = rows;
  const pixels = new ImageData(columns, rows);
  map.forEach((value, i) => pixels.data.set([...color(value), Math.round(255 * (0.42 + 0.36 * value))], 4 * i));
  grid.getContext("2d").putImageData(pixels, 0, 0);
  return grid;
}

/**
 * @param {HTMLCanvasElement} canvas that covers the picture
 * @param {{width: number, height: number}} size of the picture in pixels
 * @param {number[]} map (rows * columns), 0 to 1
 * @param {number[]} box what the model saw: left, top, right, bottom as shares of the picture
 */
export function drawMap(canvas, size, map, rows, columns, [left, top, right, bottom]) {
  const scale = MOST_PIXELS / Math.max(size.width, size.height);
  const width = (canvas.width = Math.max(1, Math.round(size.width * scale)));
  const height = (canvas.height = Math.max(1, Math.round(size.height * scale)));
  const context = canvas.getContext("2d");
  const seen = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  context.fillStyle = "rgb(0 0 0 / 62%)"; // what the model did not see
  context.fillRect(0, 0, width, height);
  context.clearRect(...seen);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.save();
  context.beginPath();
  context.rect(...seen);
  context.clip();
  context.drawImage(gridOf(map, rows, columns), ...seen);
  context.restore();
}
