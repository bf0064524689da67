"""`kawara export --to web`: the page in a real browser, headless, against torch."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
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
from kawara.data.preprocessing import Preprocessing
from kawara.edge import web
from kawara.edge.running import open_exported
from kawara.errors import ConfigError, RunFolderError
from kawara.models import create_model
from kawara.weights import ModelCard, save_model

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason="needs the extra edge")

NAMES = ("蟻", "bee <b>&amp;", "cow")
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
SECONDS = 90

DRIVER = """<!doctype html><iframe src="/page/index.html#en" style="width:1200px;height:1200px" allow="camera; cross-origin-isolated"></iframe><script>
const frame = document.querySelector("iframe");
const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
const report = (value) => fetch("/report", { method: "POST", body: JSON.stringify(value) });
async function drive({ files, camera, foreign }) {
  while (!["ready", "failed"].includes(frame.contentDocument?.body?.dataset.state)) await pause();
  const page = frame.contentDocument;
  const trouble = page.getElementById("trouble");
  const found = { title: page.title, answers: [], threads: page.querySelector("#runtime [lang=en]")?.textContent };
  if (!trouble.hidden) return { ...found, trouble: trouble.textContent };
  const next = () => new Promise((resolve) => page.addEventListener("answer", (event) => resolve(event.detail), { once: true }));
  const shown = () => [...page.querySelectorAll("#answers li")].map((row) =>
    [row.querySelector(".name").textContent, row.querySelector(".share [lang=en]").textContent]);
  for (const [name, way] of files) {
    const carrier = new DataTransfer();
    carrier.items.add(new File([await (await fetch("/images/" + name)).blob()], name, { type: "image/" + name.split(".").pop() }));
    const answer = next();
    const input = page.getElementById("file");
    if (way === "drop") page.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carrier, bubbles: true }));
    else if (way === "paste") page.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carrier, bubbles: true }));
    else { input.files = carrier.files; input.dispatchEvent(new Event("change")); }
    const failed = (async () => { while (trouble.hidden) await pause(); return { trouble: trouble.querySelector("[lang=en]").textContent }; })();
    const { probabilities, ...rest } = await Promise.race([answer, failed]);
    while (page.body.dataset.state !== "ready") await pause();
    const latency = page.querySelector("#latency [lang=en]")?.textContent;
    found.answers.push({ name, ...rest, probabilities: probabilities && [...probabilities], shown: shown(), latency });
  }
  if (camera) {
    page.getElementById("camera").click();
    const { width, height } = await next();
    await next();
    found.camera = { width, height, shown: shown() };
    page.getElementById("camera").click();
  }
  if (foreign) {
    const refused = new Promise((resolve) => page.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => resolve(effectiveDirective)));
    found.fetched = await frame.contentWindow.fetch(foreign).then(() => true, () => false);
    found.refused = await refused;
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
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return [command, *fixed, *camera, *arguments]


def browse(page, images, *, files=(), isolated=False, profile, **jobs):
    """Open an exported folder in Chromium, let the driver use it, and return what it reports."""
    server = Server({"page": page, "images": images}, {"files": files, **jobs}, isolated=isolated)
    with server.serving():
        process = subprocess.Popen(
            chromium(f"{server.address}/driver", profile=profile), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
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
        command = ["npm", "install", "--prefix", fresh, "--ignore-scripts", "--no-audit", "--no-fund", f"onnxruntime-web@{web.RUNTIME_VERSION}"]
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
    Image.fromarray(noise(31, 20)).convert("P").save(folder / "palette.png")
    flat = np.full((40, 40, 4), 255, np.uint8)  # black, and hidden where it is transparent
    flat[..., :3], flat[:, 20:, 3] = 0, 0
    Image.fromarray(flat).save(folder / "transparent.png")
    Image.fromarray(noise(300, 200, 4)).save(folder / "translucent.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(noise(30, 50, 3)).save(folder / "turned.png", exif=turned)
    # A smooth picture of more numbers than the graph is given: it is reduced first.
    y, x = np.mgrid[:2501, :2400]
    large = np.stack([127 + 120 * np.sin(x / 90 + y / 41), 255 * x / 2400, 127 + 120 * np.cos(y / 7)], axis=-1)
    Image.fromarray((large + draw.normal(0, 2, large.shape)).clip(0, 255).astype(np.uint8)).save(folder / "large.png", compress_level=1)
    (folder / "noise.png").write_bytes(b"no image at all")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, runtime):
    folder = tmp_path_factory.mktemp("web")
    source = made(folder)
    return source, verbs.export(source, to="web", runtime=runtime)


def scores(predictor, path):
    return [guess.score for guess in sorted(predictor.predict(path)[0].top, key=lambda guess: guess.index)]


def largest_difference(answer, wanted):
    return float(np.abs(np.array(answer["probabilities"]) - wanted).max())


def test_the_folder_holds_what_a_page_needs(exported):
    source, result = exported
    folder = source.parent / "model-web"
    assert result.files == [folder]
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sorted(files) == ["index.html", "model.json", "model.onnx", *(f"runtime/{name}" for name in sorted(RUNTIME_FILES))]
    assert result.certificate_path == source.parent / "model-web.certificate.json"
    assert result.certificate.num_bytes == sum(path.stat().st_size for path in files.values())
    assert result.certificate.accepted
    facts = json.loads(files["model.json"].read_text("utf-8"))
    assert facts["class_names"] == list(NAMES)
    assert facts["num_bytes"] == files["model.onnx"].stat().st_size
    page = files["index.html"].read_text("utf-8")
    assert "small <model>" not in page
    assert not re.search(r"https?://", page.replace("http://localhost:8000", "").replace("https:// ", "").replace("http://localhost", ""))


def test_the_browser_answers_as_torch_does(exported, images, tmp_path):
    source, result = exported
    with Server({}).serving() as elsewhere:
        files = [(path.name, way) for path, way in zip(sorted(images.iterdir()), ["file", "drop", "paste"] * 9)]
        found = browse(
            result.files[0], images, files=files, camera=True, foreign=f"{elsewhere.address}/jobs", profile=tmp_path / "profile"
        )
    assert found["title"] == "small <model>"
    predictor = kawara.load(source, device="cpu")
    assert len(found["answers"]) == len(files) == 11
    for answer in found["answers"]:
        name = answer["name"]
        if name == "noise.png":
            assert "noise.png is not an image" in answer["trouble"]
            assert answer["shown"] == []
            continue
        assert "trouble" not in answer, (name, answer["trouble"])
        wanted = scores(predictor, images / name)
        # The canvas rounds a mixture of colour and white once more than kawara does.
        assert largest_difference(answer, wanted) < (1e-2 if name == "translucent.png" else 1e-5), name
        assert answer["shown"][0][0] == NAMES[int(np.argmax(wanted))], name
        assert answer["shown"][0][1].startswith(f"{100 * max(wanted):.1f}"[:3]), name
    assert found["answers"][-1]["latency"].endswith("answers")
    assert found["camera"]["shown"]
    assert found["camera"]["width"] > 100
    assert (found["fetched"], found["refused"]) == (False, "connect-src")


def test_a_grey_model_on_several_threads(tmp_path, runtime, images):
    settings = Preprocessing((28, 20), "grey", resize="squash", interpolation="bilinear", mean=(0.5,), std=(0.5,))
    source = made(tmp_path, settings)
    verbs.export(source, to="web", out=tmp_path / "page", precision="fp16", runtime=runtime)
    files = [(name, "file") for name in ("0.png", "grey.png", "turned.png", "large.png")]
    found = browse(tmp_path / "page", images, files=files, isolated=True, profile=tmp_path / "profile")
    predictor = kawara.load(tmp_path / "page" / "model.onnx")
    for answer in found["answers"]:
        assert largest_difference(answer, scores(predictor, images / answer["name"])) < 1e-5, answer["name"]
    assert found["threads"].endswith(f"{min(4, os.cpu_count() or 1)} threads") or os.cpu_count() == 1


def test_from_an_address_only_the_right_files_are_run(exported, runtime, images, tmp_path):
    _, result = exported
    card = open_exported(result.files[0] / "model.onnx")[1]
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for name in RUNTIME_FILES:
        shutil.copy(runtime / name, spoilt)
    with open(spoilt / RUNTIME_FILES[0], "ab") as file:
        file.write(b"\n// something else")
    for folder, trouble in ((runtime, None), (spoilt, "onnxruntime-web cannot be loaded")):
        room = f"onnxruntime-web@{web.RUNTIME_VERSION}"
        with Server({room: folder}).serving() as elsewhere:
            page = tmp_path / f"page-{folder.name}"
            page.mkdir()
            shutil.copy(result.files[0] / "model.onnx", page)
            web.add_page(page, card, "fp32", web.choose_runtime(f"{elsewhere.address}/{room}"))
            assert sorted(path.name for path in page.iterdir()) == ["index.html", "model.json", "model.onnx"]
            found = browse(page, images, files=[("0.png", "file")], profile=tmp_path / f"profile-{folder.name}")
        if trouble is None:
            assert len(found["answers"][0]["probabilities"]) == 3
        else:
            assert trouble in found["trouble"]


def test_opened_as_a_file_the_page_says_what_to_do(exported, tmp_path):
    _, result = exported
    command = chromium("--dump-dom", f"file://{result.files[0]}/index.html#ja", profile=tmp_path / "profile")
    shown = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout.decode()
    assert 'lang="ja"' in shown
    assert re.search(r'id="trouble" role="alert"><span lang="en">A page opened as a file', shown)
