// Pictures to what the graph takes: upright pixels, transparency on white, RGB or grey; huge ones are reduced first.

const LARGE = 2 ** 24; // numbers; what has more is reduced before the graph sees it, which would take 5 to 9 bytes for each
const MAX_PIXELS = 2e8;
const STRIP_PIXELS = 2 ** 21; // phones refuse canvases above 16 megapixels, and a strip needs less memory

/** Return {data: Uint8Array (H·W·C), height, width} of an ImageBitmap or a video frame. */
function pixelsOf(picture, width, height, preprocessing) {
  const channels = preprocessing.color === "grey" ? 1 : 3;
  const target = resizedSize(height, width, preprocessing);
  if (height * width * channels > LARGE && target.height * target.width < height * width) {
    return { data: shrunk(picture, width, height, channels, target, preprocessing.interpolation), ...target };
  }
  const data = new Uint8Array(height * width * channels);
  for (const { top, pixels } of strips(picture, width, height, channels)) data.set(pixels, top * width * channels);
  return { data, height, width };
}

/** Cut a picture into strips of whole rows, from top to bottom: {top, rows, pixels}. */
function* strips(picture, width, height, channels) {
  const most = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, most];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#fff";
  for (let top = 0; top < height; top += most) {
    const rows = Math.min(most, height - top);
    context.fillRect(0, 0, width, rows);
    context.drawImage(picture, 0, top, width, rows, 0, 0, width, rows);
    yield { top, rows, pixels: inColor(context.getImageData(0, 0, width, rows).data, channels) };
  }
}

/** Return RGB, or the ITU-R 601 luma rounded as kawara rounds it, of RGBA. */
function inColor(rgba, channels) {
  const out = new Uint8Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (channels === 1) {
      out[to++] = (rgba[from] * 19595 + rgba[from + 1] * 38470 + rgba[from + 2] * 7471 + 0x8000) >> 16;
    } else {
      out[to++] = rgba[from];
      out[to++] = rgba[from + 1];
      out[to++] = rgba[from + 2];
    }
  }
  return out;
}

/** The size after the first resize: what the model was measured with, before the centre is cut out. */
function resizedSize(height, width, { image_size: wanted, resize, crop_fraction: fraction }) {
  if (resize === "squash") return { height: wanted[0], width: wanted[1] };
  const [boxHeight, boxWidth] = wanted.map((side) => Math.floor(side / fraction));
  return {
    height: Math.max(boxHeight, Math.floor((boxWidth * height) / width)),
    width: Math.max(boxWidth, Math.floor((boxHeight * width) / height)),
  };
}

/** Resize with antialiasing in fixed point as torch does on uint8, digit for digit: along rows strip by strip, then along columns. */
function shrunk(picture, width, height, channels, target, interpolation) {
  const across = resizeWeights(width, target.width, interpolation);
  const down = resizeWeights(height, target.height, interpolation);
  const narrow = new Uint8Array(height * target.width * channels);
  for (const { top, rows, pixels } of strips(picture, width, height, channels)) {
    const line = target.width * channels;
    for (let row = 0; row < rows; row++) {
      resizeLine(pixels, row * width * channels, channels, narrow, (top + row) * line, channels, channels, across);
    }
  }
  const line = target.width * channels;
  const out = new Uint8Array(target.height * line);
  for (let column = 0; column < line; column++) resizeLine(narrow, column, line, out, column, line, 1, down);
  return out;
}

function resizeLine(from, start, step, to, toStart, toStep, channels, { first, counts, weights, size, bits }) {
  const half = 2 ** (bits - 1);
  for (let output = 0; output < first.length; output++) {
    for (let channel = 0; channel < channels; channel++) {
      let sum = half;
      let place = start + channel + first[output] * step;
      for (let tap = 0; tap < counts[output]; tap++, place += step) sum += weights[output * size + tap] * from[place];
      to[toStart + channel + output * toStep] = Math.min(255, Math.max(0, sum >> bits));
    }
  }
}

/** Weights of each output along one side, as whole numbers of 2^-bits; bits is the largest number for which all fit into int16. */
function resizeWeights(inputs, outputs, interpolation) {
  const scale = inputs / outputs;
  const stretch = Math.max(scale, 1);
  const reach = (interpolation === "bilinear" ? 1 : 2) * stretch;
  const filter = interpolation === "bilinear" ? (x) => Math.max(0, 1 - x) : cubic;
  const size = Math.ceil(reach) * 2 + 1;
  const [first, counts] = [new Int32Array(outputs), new Int32Array(outputs)];
  const shares = new Float64Array(outputs * size);
  for (let output = 0; output < outputs; output++) {
    const centre = scale * (output + 0.5);
    first[output] = Math.max(0, Math.floor(centre - reach + 0.5));
    counts[output] = Math.min(inputs, Math.floor(centre + reach + 0.5)) - first[output];
    const taps = shares.subarray(output * size, output * size + counts[output]);
    taps.forEach((_, tap) => (taps[tap] = filter(Math.abs((tap + first[output] - centre + 0.5) / stretch))));
    const total = taps.reduce((sum, value) => sum + value, 0);
    taps.forEach((value, tap) => (taps[tap] = value / total));
  }
  const largest = shares.reduce((most, value) => Math.max(most, value), 0);
  let bits = 0;
  while (bits < 22 && Math.floor(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const weights = Int32Array.from(shares, (share) => Math.trunc(share * 2 ** bits + (share < 0 ? -0.5 : 0.5)));
  return { first, counts, weights, size, bits };
}

/** Cubic convolution with a = -1/2. */
function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}
