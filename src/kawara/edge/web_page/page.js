// What happens: load the run time and the model, take images, ask.

const REMEMBERED = 30;
const settings = JSON.parse($("settings").textContent);
let facts, ort, session;
let stream = null;
let waiting = null;
let busy = false;
let latencies = [];

// ---------------------------------------------------------------- loading

async function start() {
  if (location.protocol === "file:") {
    throw new Trouble(
      "A page opened as a file may not read the model beside it. In this folder, run “python -m http.server” and open http://localhost:8000",
      "ファイルとして開いたページは、隣にあるモデルを読めません。このフォルダーで「python -m http.server」を実行し、http://localhost:8000 を開いてください。",
    );
  }
  if (typeof WebAssembly !== "object") {
    throw new Trouble(
      "This browser has no WebAssembly, or it is switched off. A current Chrome, Edge, Firefox or Safari has it.",
      "このブラウザでは WebAssembly が使えないか、無効になっています。最新の Chrome、Edge、Firefox、Safari で開いてください。",
    );
  }
  facts = await (await fetched("model.json")).json();
  let bytes;
  [ort, bytes] = await Promise.all([loadRuntime(), download(facts.file, facts.num_bytes)]);
  say($("progress-words"), "Preparing the model", "モデルを準備しています");
  await painted();
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    const [height, width] = facts.preprocessing.image_size;
    await probabilities({ data: new Uint8Array(height * width * channels()), height, width }); // the first answer is slow
  } catch (error) {
    throw new Trouble(`The model cannot be run here: ${error.message}`, `このモデルはここでは動きません：${error.message}`);
  }
  describe();
  document.body.dataset.state = "ready";
  $("choose").disabled = $("camera").disabled = false;
  if (waiting) work();
}

async function fetched(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    throw new Trouble(`${address} cannot be loaded: ${error.message}`, `${address} を読み込めません：${error.message}`);
  }
  if (response.ok) return response;
  throw new Trouble(`${address} cannot be loaded: ${response.status}`, `${address} を読み込めません：${response.status}`);
}

/** Fetch a file and show how far it is. `size` is known beforehand, whatever the server compresses. */
async function download(address, size) {
  const reader = (await fetched(address)).body.getReader();
  const bytes = new Uint8Array(size);
  let got = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (got + part.value.length > size) break;
    bytes.set(part.value, got);
    got += part.value.length;
    const [done, all] = [got, size].map((count) => (count / 1e6).toFixed(1));
    say($("progress-words"), `Loading the model: ${done} of ${all} MB`, `モデルを読み込んでいます：${done} / ${all} MB`);
    $("progress").value = got / size;
  }
  if (got !== size) {
    throw new Trouble(`${address} is incomplete: ${got} of ${size} bytes.`, `${address} が不完全です（${size} バイト中 ${got}）。`);
  }
  return bytes;
}

/** Load onnxruntime-web: a module with its glue code inside, and the WebAssembly, both checked where their hashes are known. */
async function loadRuntime() {
  const base = new URL(settings.address, document.baseURI);
  const [script, binary] = settings.files.map(({ name, integrity }) => ({ address: new URL(name, base).href, integrity }));
  try {
    if (script.integrity) await loadChecked(script);
    const runtime = await import(script.address);
    runtime.env.logLevel = "error";
    const options = { credentials: "omit", integrity: binary.integrity ?? "" };
    runtime.env.wasm.wasmBinary = await (await fetched(binary.address, options)).arrayBuffer();
    runtime.env.wasm.numThreads = window.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    return runtime;
  } catch (error) {
    throw new Trouble(
      `onnxruntime-web cannot be loaded from ${base}: ${error.message}`,
      `onnxruntime-web を ${base} から読み込めません：${error.message}`,
    );
  }
}

/** Import cannot check a hash, a script element can; the import after it finds the module loaded already. */
function loadChecked({ address, integrity }) {
  return new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { type: "module", src: address, integrity, crossOrigin: "anonymous" });
    script.onload = resolve;
    script.onerror = () => reject(new Error("no connection, or not the file that was expected"));
    document.head.append(script);
  });
}

// ---------------------------------------------------------------- answering

function channels() {
  return facts.preprocessing.color === "grey" ? 1 : 3;
}

async function probabilities({ data, height, width }) {
  const image = new ort.Tensor("uint8", data, [1, height, width, channels()]);
  const { probabilities: answer } = await session.run({ image });
  return answer.data;
}

/** Ask the model about a picture: an ImageBitmap or a video. */
async function ask(picture, width, height) {
  if (width * height > MAX_PIXELS) {
    throw new Trouble(
      `The image has ${width} × ${height} pixels, more than the limit of ${MAX_PIXELS / 1e6} megapixels.`,
      `画像が大きすぎます（${width}×${height} 画素、上限 ${MAX_PIXELS / 1e4} 万画素）。`,
    );
  }
  const began = performance.now();
  const answer = await probabilities(pixelsOf(picture, width, height, facts.preprocessing));
  latencies = [...latencies, performance.now() - began].slice(-REMEMBERED);
  if (!answer.every(Number.isFinite)) {
    throw new Trouble("The model answers with something that is no number.", "モデルが数でない値を返しました。");
  }
  showAnswer(answer, width, height);
  document.dispatchEvent(new CustomEvent("answer", { detail: { probabilities: answer, width, height } }));
}

/** Take a file; while another is being looked at, the newest waits. */
function take(file) {
  stopCamera();
  waiting = file;
  if (session) work();
}

async function work() {
  if (busy) return;
  busy = true;
  while (waiting) {
    const file = waiting;
    waiting = null;
    $("trouble").hidden = true;
    document.body.dataset.state = "working";
    try {
      await askFile(file);
    } catch (error) {
      clearAnswer();
      showTrouble(error);
    }
    document.body.dataset.state = "ready";
  }
  busy = false;
}

async function askFile(file) {
  let bitmap;
  try {
    // Without the colour profile, as kawara decodes; upright by default.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Trouble(
      `${file.name || "This"} is not an image that this browser can read. JPEG, PNG and WebP are read everywhere.`,
      `${file.name || "この内容"} は、このブラウザで読める画像ではありません。JPEG、PNG、WebP ならどこでも読めます。`,
    );
  }
  URL.revokeObjectURL($("photo").src);
  $("photo").src = URL.createObjectURL(file);
  $("photo").alt = file.name;
  showPicture("photo", bitmap.width, bitmap.height);
  await painted();
  await ask(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
}

/** Wait until the browser has drawn what was changed: the model keeps the page from drawing. */
function painted() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

// ---------------------------------------------------------------- camera

async function startCamera() {
  $("trouble").hidden = true;
  try {
    if (!navigator.mediaDevices) throw new Error("insecure");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    return showTrouble(cameraTrouble(error));
  }
  const own = stream; // it may be stopped, and another started, while this one waits
  document.body.dataset.camera = "on";
  while (busy) await painted();
  busy = true;
  const video = $("video");
  try {
    if (stream === own) {
      video.srcObject = own;
      await video.play();
    }
    while (stream === own) {
      showPicture("video", video.videoWidth, video.videoHeight);
      await ask(video, video.videoWidth, video.videoHeight);
      await painted();
    }
  } catch (error) {
    if (stream === own) { // a camera that is stopped interrupts play()
      showTrouble(error);
      stopCamera();
    }
  }
  busy = false;
  work();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  delete document.body.dataset.camera;
  if (!$("video").hidden) $("video").pause();
}

function cameraTrouble({ name, message }) {
  if (message === "insecure") {
    return new Trouble(
      "Browsers give the camera only to pages from https:// or http://localhost.",
      "カメラは、https:// または http://localhost のページでだけ使えます。",
    );
  }
  if (name === "NotAllowedError") {
    return new Trouble("The camera was not allowed. The address bar lets you change that.", "カメラが許可されていません。アドレスバーから変更できます。");
  }
  if (name === "NotFoundError") return new Trouble("There is no camera.", "カメラが見つかりません。");
  return new Trouble(`The camera does not start: ${message}`, `カメラを開始できません：${message}`);
}

// ---------------------------------------------------------------- what the reader does

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) take($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.dataset.drag = "over";
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) delete document.body.dataset.drag;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  delete document.body.dataset.drag;
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) take(file);
});

const japanese = $("language-ja");
const tell = () => (document.documentElement.lang = japanese.checked ? "ja" : "en");
japanese.checked = location.hash === "#ja" || (location.hash !== "#en" && /^ja/.test(navigator.language));
for (const choice of document.getElementsByName("language")) choice.addEventListener("change", tell);
tell();

start().catch((error) => {
  document.body.dataset.state = "failed";
  showTrouble(error);
});
