// What the reader sees: words in two languages, pictures, answers.

const SHOWN = 5;
const SMALL_PX = 64; // shown with its pixels visible
const $ = (id) => document.getElementById(id);

/** An error that is told to the reader, in both languages. */
class Trouble extends Error {
  constructor(en, ja) {
    super(en);
    this.words = [en, ja];
  }
}

/** Fill an element with the same words in both languages. */
function say(element, en, ja) {
  const span = (lang, words) => Object.assign(document.createElement("span"), { lang, textContent: words });
  element.replaceChildren(span("en", en), span("ja", ja));
}

function showTrouble(error) {
  const [en, ja] = error.words ?? [`Something went wrong: ${error.message ?? error}`, `エラーが起きました：${error.message ?? error}`];
  say($("trouble"), en, ja);
  $("trouble").hidden = false;
}

/** Show the photo or the video, and what of it the model sees. */
function showPicture(id, width, height) {
  if (document.body.dataset.picture !== id) latencies = [];
  $("photo").hidden = id !== "photo";
  $("video").hidden = id !== "video";
  $("picture").hidden = false;
  $("picture").style.setProperty("--ratio", width / height);
  $("picture").classList.toggle("small", Math.max(width, height) <= SMALL_PX);
  document.body.dataset.picture = id;
  const resized = resizedSize(height, width, facts.preprocessing);
  const [seenHeight, seenWidth] = facts.preprocessing.image_size;
  $("seen").style.height = `${(100 * seenHeight) / resized.height}%`;
  $("seen").style.width = `${(100 * seenWidth) / resized.width}%`;
}

function clearAnswer() {
  $("answers").replaceChildren();
  $("picture").hidden = true;
  delete document.body.dataset.picture;
}

function showAnswer(answer, width, height) {
  const rows = likeliest(answer, SHOWN).map((index) => {
    const row = $("row").content.cloneNode(true);
    row.querySelector(".name").textContent = facts.class_names[index];
    const share = percent(answer[index]);
    say(row.querySelector(".share"), `${share}\u00a0%`, `${share}%`);
    row.querySelector(".fill").style.width = `${100 * answer[index]}%`;
    return row;
  });
  $("answers").replaceChildren(...rows);
  const middle = [...latencies].sort((a, b) => a - b)[Math.floor((latencies.length - 1) / 2)];
  const ms = middle < 10 ? middle.toFixed(1) : middle.toFixed(0);
  const count = latencies.length;
  say(
    $("latency"),
    count === 1 ? `${ms} ms` : `${ms} ms, median of ${count} answers`,
    count === 1 ? `${ms} ms` : `${ms} ms（${count} 回の中央値）`,
  );
  say($("size"), `${width} × ${height} px`, `${width}×${height} px`);
}

function describe() {
  const [height, width] = facts.preprocessing.image_size;
  const size = `${(facts.num_bytes / 1e6).toFixed(1)} MB`;
  const count = facts.class_names.length.toLocaleString("en");
  say(
    $("model"),
    `${count} classes, ${width} × ${height} px, ${facts.precision}, ${size}`,
    `${count} クラス、${width}×${height} px、${facts.precision}、${size}`,
  );
  const version = ort.env.versions?.web ?? "";
  const threads = ort.env.wasm.numThreads;
  say(
    $("runtime"),
    `onnxruntime-web ${version}, WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`,
    `onnxruntime-web ${version}、WebAssembly、${threads} スレッド`,
  );
}

/** Indices of the largest numbers, largest first. */
function likeliest(numbers, count) {
  return Array.from(numbers.keys())
    .sort((a, b) => numbers[b] - numbers[a])
    .slice(0, count);
}

/** A share in [0, 1] in hundredths; what is less than all never reads as 100. */
function percent(share) {
  const rounded = (digits) => (100 * share).toFixed(digits);
  const digits = share > 0 && share < 1 && ["0.0", "100.0"].includes(rounded(1)) ? 2 : 1;
  return share < 1 && Number(rounded(digits)) === 100 ? "99.99" : rounded(digits);
}
