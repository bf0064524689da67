"""`kawara export --to web`: the page in a real browser, headless, against torch."""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kawara
from kawara import verbs
from kawara.cli import main
from kawara.data.decode import decode
from kawara.data.preprocessing import Preprocessing
from kawara.edge import export as exports
from kawara.edge import web
from kawara.edge.running import open_exported
from kawara.errors import ConfigError, RunFolderError
from kawara.models import create_model
from kawara.weights import ModelCard, save_model

onnx = pytest.importorskip("onnx", reason="needs the extra edge")
pytest.importorskip("onnxscript", reason="needs the extra edge")
pytest.importorskip("onnxruntime", reason="needs the extra edge")

NAMES = ("蟻", "bee <b>&amp;", "cow")
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
SECONDS = 150

DRIVER = """<!doctype html>
<iframe src="/page/index.html#en" width="1200" height="1200" allow="camera; cross-origin-isolated"></iframe>
<script>
const frame = document.querySelector("iframe");
const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
const report = (value) => fetch("/report", { method: "POST", body: JSON.stringify(value) });
async function drive({ files, camera, foreign }) {
  while (!["ready", "failed"].includes(frame.contentDocument?.body?.dataset.state)) await pause();
  const page = frame.contentDocument;
  const facts = await (await fetch("/page/model.json")).json();
  const trouble = page.getElementById("trouble");
  const found = { title: page.title, answers: [], threads: page.querySelector("#runtime [lang=en]")?.textContent };
  if (!trouble.hidden) return { ...found, trouble: trouble.textContent };
  const next = () => new Promise((resolve) => page.addEventListener("answer", (event) => resolve(event.detail), { once: true }));
  const failed = async () => {
    while (trouble.hidden) await pause();
    return { trouble: trouble.querySelector("[lang=en]").textContent };
  };
  const digest = async (file) => {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const { data } = frame.contentWindow.pixelsOf(bitmap, bitmap.width, bitmap.height, facts.preprocessing);
    return [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  const shown = () => [...page.querySelectorAll("#answers li")].map((row) =>
    [row.querySelector(".name").textContent, row.querySelector(".share [lang=en]").textContent]);
  for (const [name, way] of files) {
    const file = new File([await (await fetch("/images/" + name)).blob()], name, { type: "image/" + name.split(".").pop() });
    const carrier = new DataTransfer();
    carrier.items.add(file);
    const answer = next();
    const input = page.getElementById("file");
    if (way === "drop") page.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carrier, bubbles: true }));
    else if (way === "paste") page.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carrier, bubbles: true }));
    else { input.files = carrier.files; input.dispatchEvent(new Event("change")); }
    const { probabilities, ...rest } = await Promise.race([answer, failed()]);
    while (page.body.dataset.state !== "ready") await pause();
    const latency = page.querySelector("#latency [lang=en]")?.textContent;
    const pixels = probabilities && (await digest(file));
    found.answers.push({ name, ...rest, pixels, probabilities: probabilities && [...probabilities], shown: shown(), latency });
  }
  if (camera) {
    page.getElementById("camera").click();
    const { width, height } = await next();
    await next();
    found.camera = { width, height, shown: shown() };
    page.getElementById("camera").click();
  }
  if (foreign) {
    const refused = new Promise((resolve) => page.addEventListener("securitypolicyviolation", resolve));
    found.fetched = await frame.contentWindow.fetch(foreign).then(() => true, () => false);
    found.refused = (await refused).effectiveDirective;
  }
  return found;
}
fetch("/jobs").then((reply) => reply.json()).then(drive).then(report, (error) => report({ error: String(error.stack ?? error) }));
</script>"""


class Server(http.server.ThreadingHTTPServer):
    """Folders under names, the driver, and what it reports, on a port of this machine."""

    def __init__(self, folders, jobs=None, *, isolated=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders, self.jobs, self.isolated = folders, jobs, isolated
        self.reports = queue.Queue()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def serving(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def translate_path(self, path):
        room, _, rest = path.split("?")[0].lstrip("/").partition("/")
        return str(self.server.folders.get(room, Path("/nowhere")) / rest)

    def do_GET(self):
        own = {"/driver": DRIVER, "/jobs": json.dumps(self.server.jobs)}.get(self.path)
        if own is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        return self.wfile.write(own.encode())

    def do_POST(self):
        self.server.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def end_headers(self):
        if self.server.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_):
        pass


def chromium(*arguments, profile):
    command = next((found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))), None)
    if command is None:
        pytest.skip("needs chromium")
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return [command, *fixed, *camera, f"--user-data-dir={profile}", *arguments]


def browse(page, images, *, files=(), isolated=False, profile, **jobs):
    """Open an exported folder in Chromium, let the driver use it, and return what it reports."""
    server = Server({"page": page, "images": images}, {"files": files, **jobs}, isolated=isolated)
    with server.serving():
        command = chromium(f"{server.address}/driver", profile=profile)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            found = server.reports.get(timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(scope="session")
def runtime():
    """The folder of onnxruntime-web: KAWARA_ORT_WEB, or fetched once from the npm registry."""
    given = os.environ.get("KAWARA_ORT_WEB")
    if given:
        return Path(given)
    place = Path(tempfile.gettempdir()) / f"kawara-onnxruntime-web-{web.RUNTIME_VERSION}"
    folder = place / "node_modules" / "onnxruntime-web" / "dist"
    if all((folder / name).is_file() for name in RUNTIME_FILES):
        return folder
    if shutil.which("npm") is None:
        pytest.skip("needs npm, or KAWARA_ORT_WEB: the folder dist of onnxruntime-web")
    with tempfile.TemporaryDirectory(dir=tempfile.gettempdir()) as fresh:
        package = f"onnxruntime-web@{web.RUNTIME_VERSION}"
        command = ["npm", "install", "--prefix", fresh, "--ignore-scripts", "--no-audit", "--no-fund", package]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError):
            pytest.skip("onnxruntime-web comes from the npm registry, which does not answer")
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(fresh, place)
            os.mkdir(fresh)
    return folder


def made(folder, preprocessing=None, **options):
    """Save a small model that decides by what it sees."""
    torch.manual_seed(0)
    preprocessing = preprocessing or Preprocessing((16, 16), crop_fraction=0.8)
    size = {"image_size": preprocessing.image_size, "channels": preprocessing.channels}
    model = create_model("vit_femto_4", num_classes=3, depth=1, **size, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    card = ModelCard("small <model>", model.config, NAMES, preprocessing)
    save_model(folder / "model.safetensors", model.state_dict(), card)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures without loss, of many kinds."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)

    def noise(*shape):
        return draw.integers(0, 256, shape, dtype=np.uint8)

    for index in range(4):
        Image.fromarray(noise(*draw.integers(5, 90, 2), 3)).save(folder / f"{index}.png")
    Image.fromarray(noise(20, 31)).save(folder / "grey.png")
    Image.fromarray(draw.integers(0, 2**16, (20, 31), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise(31, 20)).convert("P").save(folder / "palette.png")
    flat = np.full((40, 40, 4), 255, np.uint8)  # black, and hidden where it is transparent
    flat[..., :3], flat[:, 20:, 3] = 0, 0
    Image.fromarray(flat).save(folder / "transparent.png")
    Image.fromarray(noise(300, 200, 4)).save(folder / "translucent.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(noise(30, 50, 3)).save(folder / "turned.png", exif=turned)
    # More numbers than the graph is given: it is reduced first.
    y, x = np.arange(2501, dtype=np.uint16)[:, None, None], np.arange(2400, dtype=np.uint16)[None, :, None]
    large = ((x * np.array([1, 3, 30], np.uint16) + y * np.array([50, 2, 1], np.uint16)) >> 3).astype(np.uint8)
    Image.fromarray(large).save(folder / "large.png", compress_level=1)
    (folder / "noise.png").write_bytes(b"no image at all")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    source = made(tmp_path_factory.mktemp("web"))
    return source, verbs.export(source, to="web")


@pytest.fixture(scope="module")
def page(exported, runtime, tmp_path_factory):
    """The exported model with a page that needs no other server."""
    return with_runtime(exported[1].files[0], tmp_path_factory.mktemp("page"), runtime)


def with_runtime(exported, folder, runtime):
    """Make the page of an exported folder anew, with onnxruntime-web from elsewhere."""
    shutil.copy(exported / web.MODEL_NAME, folder)
    web.add_page(folder, open_exported(folder / web.MODEL_NAME)[1], "fp32", web.choose_runtime(runtime))
    return folder


def policy(folder):
    """The Content-Security-Policy of a page."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', (folder / "index.html").read_text("utf-8"))
    assert found
    return dict(part.split(" ", 1) for part in html.unescape(found[1]).split("; "))


def scores(predictor, path):
    """Return the probabilities of all classes, in their order."""
    answer = predictor.predict([path], top=len(predictor.class_names))[0]
    return [guess.score for guess in sorted(answer.top, key=lambda guess: guess.index)]


def largest_difference(answer, wanted):
    return float(np.abs(np.array(answer["probabilities"]) - wanted).max())


def test_the_folder_holds_what_a_page_needs(exported, tmp_path):
    source, result = exported
    folder = source.parent / "model-web"
    assert result.files == [folder]
    files = {path.name: path for path in folder.iterdir()}
    assert sorted(files) == ["index.html", "model.json", "model.onnx"]
    assert sorted(path.name for path in source.parent.iterdir()) == ["model-web", "model-web.certificate.json", "model.safetensors"]
    assert result.certificate.num_bytes == sum(path.stat().st_size for path in files.values())
    assert result.certificate.accepted
    facts = json.loads(files["model.json"].read_text("utf-8"))
    assert facts["class_names"] == list(NAMES)
    assert facts["num_bytes"] == files["model.onnx"].stat().st_size
    assert "<model>" not in files["index.html"].read_text("utf-8")
    assert policy(folder)["connect-src"] == f"'self' {web.RUNTIME_ADDRESS}"
    own = tmp_path / "own"
    own.mkdir()
    for name in RUNTIME_FILES:
        (own / name).write_bytes(b"something")
    (own / "ort.all.js").write_bytes(b"more than is needed")
    offline = tmp_path / "offline"
    offline.mkdir()
    with_runtime(folder, offline, own)
    assert sorted(path.name for path in (offline / "runtime").iterdir()) == sorted(RUNTIME_FILES)
    assert "http" not in " ".join(policy(offline).values())


def test_a_refused_page_is_kept_under_another_name(exported, tmp_path, monkeypatch, capsys):
    """Weights that are spoilt on their way out: the certificate sees it."""
    source, result = exported
    proto = onnx.load(result.files[0] / "model.onnx")
    head = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("head.bias"))
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + np.float32([9, 0, 0]), head.name))
    monkeypatch.setattr(exports, "trace", lambda model, preprocessing: None)
    monkeypatch.setattr(exports, "write_onnx", lambda program, card, path, precision="fp32": onnx.save(proto, path))
    assert main(["export", str(source), "--to", "web", "--out", str(tmp_path / "page")]) == 3
    assert "is refused: a probability differs by" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.certificate.json", "page.rejected"]
    assert (tmp_path / "page.rejected" / "index.html").is_file()


def test_what_cannot_be_written_is_said_and_leaves_nothing(exported, tmp_path):
    source, _ = exported
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for options, error, words in (
        ({"out": tmp_path / "full"}, RunFolderError, "exists already"),
        ({"out": "."}, ConfigError, "does not exist yet"),
        ({"out": tmp_path / "no" / "page"}, ConfigError, "There is no folder"),
        ({"runtime": tmp_path}, ConfigError, r"no ort[\s\S]*npm install onnxruntime-web@"),
        ({"runtime": "https://cdn.example/ort'; script-src *"}, ConfigError, "not the address"),
        ({"to": "onnx", "runtime": tmp_path}, ConfigError, "for --to web"),
    ):
        with pytest.raises(error, match=words):
            verbs.export(source, **{"to": "web", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_browser_answers_as_torch_does(exported, page, images, tmp_path):
    source, _ = exported
    with Server({}).serving() as elsewhere:
        files = [(path.name, way) for path, way in zip(sorted(images.iterdir()), ["file", "drop", "paste"] * 9)]
        foreign = f"{elsewhere.address}/jobs"
        found = browse(page, images, files=files, camera=True, foreign=foreign, isolated=True, profile=tmp_path / "profile")
    assert found["title"] == "small <model>"
    predictor = kawara.load(source, device="cpu")
    assert len(found["answers"]) == len(files) == 12
    for answer in found["answers"]:
        name = answer["name"]
        if name == "noise.png":
            assert "noise.png is not an image" in answer["trouble"]
            assert answer["shown"] == []
            continue
        assert "trouble" not in answer, (name, answer["trouble"])
        wanted = scores(predictor, images / name)
        assert largest_difference(answer, wanted) < 1e-5, name
        pixels = decode((images / name).read_bytes(), name)
        pixels = predictor.card.preprocessing.shrink(pixels) if pixels.size > 2**24 else pixels
        assert answer["pixels"] == hashlib.sha256(pixels.tobytes()).hexdigest(), name
        assert answer["shown"][0][0] == NAMES[int(np.argmax(wanted))], name
        assert answer["shown"][0][1].startswith(f"{100 * max(wanted):.1f}"[:3]), name
    assert found["answers"][-1]["latency"].endswith("answers")
    assert found["camera"]["shown"]
    assert found["camera"]["width"] > 100
    assert (found["fetched"], found["refused"]) == (False, "connect-src")
    threads = min(4, os.cpu_count() or 1)
    assert found["threads"].endswith(f" {threads} threads" if threads > 1 else " 1 thread")


def test_from_an_address_only_the_right_files_are_run(exported, runtime, images, tmp_path):
    _, result = exported
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for name in RUNTIME_FILES:
        shutil.copy(runtime / name, spoilt)
    with open(spoilt / RUNTIME_FILES[0], "ab") as file:
        file.write(b"\n// something else")
    found = []
    for number, folder in enumerate((runtime, spoilt)):
        room = f"onnxruntime-web@{web.RUNTIME_VERSION}"
        with Server({room: folder}).serving() as elsewhere:
            page = tmp_path / f"page-{number}"
            page.mkdir()
            with_runtime(result.files[0], page, f"{elsewhere.address}/{room}")
            found.append(browse(page, images, files=[("0.png", "file")], profile=tmp_path / f"profile-{number}"))
    assert len(found[0]["answers"][0]["probabilities"]) == 3
    assert "onnxruntime-web cannot be loaded" in found[1]["trouble"]


def test_opened_as_a_file_the_page_says_what_to_do(exported, tmp_path):
    _, result = exported
    command = chromium("--dump-dom", f"file://{result.files[0]}/index.html#ja", profile=tmp_path / "profile")
    shown = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout.decode()
    assert 'lang="ja"' in shown
    assert re.search(r'id="trouble" role="alert"><span lang="en">A page opened as a file', shown)


@pytest.mark.slow
def test_a_grey_model_in_half_precision(tmp_path, runtime, images):
    settings = Preprocessing((28, 20), "grey", resize="squash", interpolation="bilinear", mean=(0.5,), std=(0.5,))
    result = verbs.export(made(tmp_path, settings), to="web", precision="fp16", runtime=runtime)
    files = [(name, "file") for name in ("0.png", "grey.png", "turned.png", "large.png")]
    found = browse(result.files[0], images, files=files, profile=tmp_path / "profile")
    predictor = kawara.load(result.files[0] / "model.onnx")
    for answer in found["answers"]:
        assert largest_difference(answer, scores(predictor, images / answer["name"])) < 1e-5, answer["name"]


@pytest.mark.slow
def test_photos_get_the_answers_of_torch(tmp_path, runtime, shared):
    """DeiT-Ti on photos of many sizes: JPEG as they are, and as PNG."""
    source = shared / "weights" / "deit_tiny_patch16_224_in1k.safetensors"
    result = verbs.export(source, to="web", out=tmp_path / "page", runtime=runtime)
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted((shared / "data" / "imagenet_samples").glob("*.JPEG"))[::40][:20]:
        shutil.copy(photo, folder / f"{photo.stem}.jpeg")
        Image.open(photo).convert("RGB").save(folder / f"{photo.stem}.png")
    names = sorted(path.name for path in folder.iterdir())
    found = browse(result.files[0], folder, files=[(name, "file") for name in names], profile=tmp_path / "profile")
    predictor = kawara.load(source, device="cpu")
    assert len(found["answers"]) == 40
    for answer in found["answers"]:
        wanted = scores(predictor, folder / answer["name"])
        assert int(np.argmax(answer["probabilities"])) == int(np.argmax(wanted)), answer["name"]
        assert answer["name"].endswith("jpeg") or largest_difference(answer, wanted) < 1e-4, answer["name"]


@pytest.mark.slow
def test_int8_in_the_browser_answers_as_on_the_machine(tmp_path, runtime, shared):
    """DeiT-Ti in int8 with merged tokens, against ONNX Runtime with the same file.

    What float32 rounds differently before a step of int8 is a step afterwards: ONNX Runtime with and without its optimisations differs by
    up to 0.046 on these photos.
    """
    samples = shared / "data" / "imagenet_samples"
    index_of = dict(reversed(line.split("\t")[:2]) for line in (samples / "classes.tsv").read_text().splitlines() if line[:1].isdigit())
    photos = sorted(samples.glob("*.JPEG"))[::4]
    (tmp_path / "photos.csv").write_text("path,label\n" + "".join(f"{photo},{index_of[photo.name.split('_')[0]]}\n" for photo in photos))
    source = shared / "weights" / "deit_tiny_patch16_224_in1k.safetensors"
    options = {"precision": "int8", "merge": 8, "data": tmp_path / "photos.csv", "max_drop": 5.0}
    page = verbs.export(source, to="web", out=tmp_path / "page", runtime=runtime, **options).files[0]
    found = browse(page, samples, files=[(photo.name, "file") for photo in photos[::10]], profile=tmp_path / "profile")
    predictor = kawara.load(page / "model.onnx")
    assert len(found["answers"]) == 20
    for answer in found["answers"]:
        wanted = scores(predictor, samples / answer["name"])
        second, first = np.sort(wanted)[-2:]
        assert first - second < 0.1 or int(np.argmax(answer["probabilities"])) == int(np.argmax(wanted)), answer["name"]
        assert largest_difference(answer, wanted) < 0.1, answer["name"]
