"""The hub is a small server on this machine; what is asked of it is counted."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from kawara.errors import ModelFileError
from kawara.weights.hub import choose_weights, fetch


@pytest.mark.parametrize(
    "spec",
    [
        "hub:",
        "hub:vit",
        "hub:a/b/../../etc/passwd",
        "hub:a/b@",
        "hub:a/b@main/",
        "hub:../b",
        "hub:a/b c",
        "hub:a//b",
        "HUB:a/b",
        "hub:a/b\\c",
        "hub:a/b@m/x\n",
    ],
)
def test_a_name_that_is_not_understood_shows_how_it_is_written(spec):
    with pytest.raises(ModelFileError, match="hub:owner/name"):
        fetch(spec)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r"kawara\[hub\]"):
        fetch("hub:owner/name")


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["config.json", "pytorch_model.bin", "model.safetensors", "odd.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["odd.safetensors", "pytorch_model.bin"], "odd.safetensors"),
        (["vit.npz", "onnx/model.safetensors"], "vit.npz"),
        (["deit.pth", "vit.npz"], "deit.pth"),
    ],
)
def test_one_file_of_weights_is_chosen(files, chosen):
    assert choose_weights("hub:a/b", files) == chosen


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "parts of one model"),
        (["a.npz", "b.npz"], "hub:a/b/a.npz"),
        (["README.md", "tf_model.h5"], "no weights"),
        ([], "nothing"),
    ],
)
def test_where_there_is_no_one_file_it_is_said(files, words):
    with pytest.raises(ModelFileError, match=words):
        choose_weights("hub:a/b", files)


# With the real huggingface_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "owner/vit": {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"not wanted",
        "README.md": b"nor this",
    },
    "owner/jax": {"B_16.npz": b"B", "S_16.npz": b"S", "sub/config.json": b'{"in": "sub"}', "sub/L_16.npz": b"L"},
    "owner/one.npz": {"ViT-B_16.npz": b"B"},
    "owner/empty": {"README.md": b"nothing"},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    asked: list[str]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        files = REPOSITORIES.get(f"{owner}/{name}")
        revision = rest[1] if len(rest) > 1 else "main"
        if f"{owner}/{name}" == "owner/gated":
            return self.send(403, b"Access to model owner/gated is restricted", {"X-Error-Code": "GatedRepo"}, body)
        if files is None:
            return self.send(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"}, body)
        if revision not in ("main", "v1", "refs", COMMIT):
            return self.send(404, b"Revision not found", {"X-Error-Code": "RevisionNotFound"}, body)
        if api:
            listing = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            return self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        path = "/".join(rest[2:])
        if path not in files:
            return self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        if body:
            type(self).asked.append(path)
        return self.send(200, files[path], {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(path)):040x}"'}, body)

    def send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start the server and point huggingface_hub at it."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed (pip install 'kawara[hub]')")
    import huggingface_hub.file_download

    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for module in (constants, huggingface_hub.file_download):  # versions differ in where they look
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield handler, server, constants
    server.shutdown()
    server.server_close()


def test_only_what_is_needed_is_downloaded_and_only_once(hub):
    handler, _, _ = hub
    folder = fetch("hub:owner/vit")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert fetch("hub:owner/vit") == folder
    assert sorted(handler.asked) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_a_file_is_named_where_there_are_several(hub):
    with pytest.raises(ModelFileError, match=r"hub:owner/jax/B_16\.npz"):
        fetch("hub:owner/jax")
    assert fetch("hub:owner/jax/S_16.npz").read_bytes() == b"S"
    path = fetch("hub:owner/jax@v1/sub/L_16.npz")
    assert path.read_bytes() == b"L"
    assert json.loads((path.parent / "config.json").read_text()) == {"in": "sub"}
    assert fetch("hub:owner/one.npz").name == "ViT-B_16.npz"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hub:owner/absent", "no model owner/absent"),
        ("hub:owner/vit@gone", "no such revision"),
        ("hub:owner/vit/gone.npz", r"no file gone\.npz"),
        ("hub:owner/gated", "HF_TOKEN"),
        ("hub:owner/empty", "no weights"),
        ("hub:owner/a--b", "not a name that the hub accepts"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_remedy(hub, spec, words):
    handler, _, _ = hub
    with pytest.raises(ModelFileError, match=words) as refused:
        fetch(spec)
    assert "try:" in str(refused.value) or "allowed:" in str(refused.value)
    assert handler.asked == []


@pytest.mark.parametrize("how", ["switched off", "no network"])
def test_without_network_the_cache_answers_and_else_the_way_by_hand_is_told(hub, monkeypatch, how):
    _, server, constants = hub
    folder = fetch("hub:owner/vit")
    named = fetch("hub:owner/jax/S_16.npz")
    if how == "switched off":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        server.shutdown()
        server.server_close()
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch("hub:owner/vit") == folder
    assert fetch("hub:owner/jax/S_16.npz") == named
    for spec in ("hub:owner/one.npz", "hub:owner/jax/B_16.npz"):
        with pytest.raises(ModelFileError, match=r"copy them here, and give the path of their folder") as refused:
            fetch(spec)
        assert ("HF_HUB_OFFLINE" in str(refused.value)) is (how == "switched off")
