"""Write a folder that a browser runs: the .onnx file, its facts, and one page with onnxruntime-web.

    index.html     the page, with style and script inside
    NAME.onnx      the graph: raw pixels in, probabilities out
    model.json     what the page needs to know of it: class names, preprocessing, size
    runtime/       onnxruntime-web, where it is copied; else the page loads it from an address

The page may connect to its own server and to that address only: its Content-Security-Policy names both, and its style and its script by
their hashes (https://www.w3.org/TR/CSP3/). Files from an address are checked where their hashes are known
(https://www.w3.org/TR/SRI/).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2

from kawara.config import to_dict
from kawara.errors import ConfigError
from kawara.weights.model_file import ModelCard

RUNTIME_VERSION = "1.30.0"
RUNTIME_ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
"""Where the page loads onnxruntime-web from, if nothing else is said."""
MODEL_NAME = "model.onnx"

# The hashes are those of the files in the package of that version.
_RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
_COPIED = "runtime/"
_PARTS = Path(__file__).with_name("web_page")


@dataclass(frozen=True)
class WebRuntime:
    """Where onnxruntime-web is: an address with a slash at its end, or a folder to copy it from."""

    address: str = RUNTIME_ADDRESS
    folder: Path | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the files that are copied."""
        return sum((self.folder / name).stat().st_size for name in _RUNTIME_FILES) if self.folder else 0


def choose_runtime(source: str | Path | None) -> WebRuntime:
    """Return where onnxruntime-web is, of the setting `--runtime`. Raises ConfigError for what is neither an address nor its folder."""
    if source is None:
        return WebRuntime()
    if re.match(r"https?://", str(source)):
        address = str(source).rstrip("/") + "/"
        # Quotes, semicolons and spaces would end a source in the policy of the page.
        if not re.fullmatch(r"https?://[\w.:-]+/[\w./@%+~-]*", address, re.ASCII):
            raise ConfigError("--runtime is not the address of a folder.", got=source, allowed=f"for instance {RUNTIME_ADDRESS}")
        return WebRuntime(address)
    folder = Path(source)
    missing = [name for name in _RUNTIME_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} does not hold onnxruntime-web.",
            got=f"no {' and no '.join(missing)}",
            remedy=f"npm install onnxruntime-web@{RUNTIME_VERSION}, and --runtime node_modules/onnxruntime-web/dist",
        )
    return WebRuntime(_COPIED, folder)


def add_page(folder: Path, card: ModelCard, precision: str, runtime: WebRuntime) -> None:
    """Write the page, the facts and, if it is to be copied, onnxruntime-web beside the model in `folder`."""
    facts = {
        "name": card.name,
        "file": MODEL_NAME,
        "num_bytes": (folder / MODEL_NAME).stat().st_size,
        "precision": precision,
        "class_names": list(card.class_names),
        "preprocessing": to_dict(card.preprocessing),
    }
    (folder / "model.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if runtime.folder:
        (folder / _COPIED).mkdir()
        for name in _RUNTIME_FILES:
            shutil.copyfile(runtime.folder / name, folder / _COPIED / name)
    (folder / "index.html").write_text(_page(card, runtime), encoding="utf-8")


def _page(card: ModelCard, runtime: WebRuntime) -> str:
    style, script = _joined("page.css"), _joined("pixels.js", "showing.js", "page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        name=card.name,
        crops=card.preprocessing.resize == "crop",
        version=version("kawara"),
        other_server="" if runtime.folder else urlsplit(runtime.address).netloc,
        policy=_policy(style, script, runtime),
        settings=json.dumps(_settings(runtime)),
        style=style,
        script=script,
    )


def _settings(runtime: WebRuntime) -> dict[str, Any]:
    known = runtime.folder is None and f"@{RUNTIME_VERSION}/" in runtime.address
    files = [{"name": name, "integrity": digest if known else None} for name, digest in _RUNTIME_FILES.items()]
    return {"address": runtime.address, "files": files}


def _policy(style: str, script: str, runtime: WebRuntime) -> str:
    """Return the Content-Security-Policy: nothing is allowed but what is listed."""
    source = "'self'" if runtime.folder else runtime.address
    allowed = {
        "default-src": "'none'",
        "script-src": f"{_hash(script)} 'wasm-unsafe-eval' {source}",
        "style-src": _hash(style),
        "connect-src": "'self'" if runtime.folder else f"'self' {source}",
        "img-src": "blob: data:",
        "media-src": "blob:",
        "worker-src": f"blob: {source}",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _joined(*names: str) -> str:
    """Return parts of the page as they stand between tags."""
    return "\n" + "\n".join((_PARTS / name).read_text(encoding="utf-8") for name in names)
