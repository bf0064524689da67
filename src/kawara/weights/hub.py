"""Fetch a checkpoint from the Hugging Face hub: `hub:owner/name[@revision][/file]` (extra `hub`).

Only what is needed is downloaded: config.json, preprocessor_config.json, and one file of weights, safetensors before pytorch_model.bin
before npz. It lands in the cache of `huggingface_hub`, which other tools share, and is not downloaded twice. Progress is shown on stderr.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kawara.errors import ModelFileError

_SPEC = re.compile(
    r"hub:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+))?"
    r"(?:/(?P<file>[^/\\\x00-\x1f]+(?:/[^/\\\x00-\x1f]+)*))?",
    re.ASCII,
)
_BESIDE = ("config.json", "preprocessor_config.json")
_USUAL = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz")
"""Weights, best first."""


def fetch(spec: str) -> Path:
    """Return the local folder (or file, where `spec` names one) of a checkpoint on the hub, downloaded unless it is there already.

    Raises ModelFileError when `huggingface_hub` is not installed, the name is not understood or not found, access is not granted, or the
    hub cannot be reached and the checkpoint is not in the cache.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or ".." in (match["file"] or "").split("/"):
        raise ModelFileError(
            "A checkpoint on the hub is called hub:owner/name, with a revision and a file where needed.",
            got=spec,
            allowed="hub:owner/name[@revision][/file]",
            remedy="hub:google/vit-base-patch16-224",
        )
    repository, revision, file = match["repository"], match["revision"], match["file"]
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelFileError(f"{spec} needs the package `huggingface_hub`.", remedy="pip install 'kawara[hub]', or " + _BY_HAND) from None

    def download(name: str, *, cached: bool = False) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=cached))

    with _plain_errors(spec, repository):
        try:
            # Not list_repo_files: without a network that one tries again for half a minute.
            listing = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=10)
            files = [file.rfilename for file in listing.siblings or []]
        except Exception as error:
            if isinstance(error, _refusals()):
                raise
            return _from_cache(spec, file, download, error)
        weights = file or choose_weights(spec, files)
        if weights not in files:
            raise ModelFileError(f"{repository} on the hub has no file {weights}.", allowed=_listing(files))
        folder = weights.rpartition("/")[0]
        for name in _BESIDE:
            beside = f"{folder}/{name}" if folder else name
            if beside in files:
                download(beside)
        path = download(weights)
    return path if file or weights not in _USUAL else path.parent


def choose_weights(spec: str, files: list[str]) -> str:
    """Return the file of weights among the names in a folder. Raises ModelFileError where there is none, or several equally good ones."""
    files = [name for name in files if "/" not in name and name != "training_args.bin"]
    for suffix in _SUFFIXES:
        found = [name for name in files if name.endswith(suffix)]
        usual = [name for name in found if name in _USUAL]
        if len(usual or found) == 1:
            return (usual or found)[0]
        if found:
            parts = any(re.search(r"-\d+-of-\d+\.", name) for name in found)
            raise ModelFileError(
                f"{spec} has its weights in several files" + (", the parts of one model, which kawara does not read." if parts else "."),
                got=_listing(found),
                remedy="another checkpoint of the model" if parts else f"{spec}/{found[0]}",
            )
    raise ModelFileError(f"{spec} holds no weights that kawara reads.", got=_listing(files), allowed="a file " + ", ".join(_SUFFIXES))


def _from_cache(spec: str, file: str | None, download: Callable[..., Path], error: Exception) -> Path:
    """Return what an earlier download left, if all of it is there; else say why the hub was of no help."""
    for name in (file,) if file else (*_BESIDE, *_USUAL):
        try:
            path = download(name, cached=True)
        except Exception:  # of many kinds, from version to version: it is not there
            continue
        if file:
            return path
        weights = choose_weights(spec, [found.name for found in path.parent.iterdir()])
        return path.parent if weights in _USUAL else path.parent / weights
    offline = "OfflineMode" in type(error).__name__
    raise ModelFileError(
        f"{spec} is not on this machine, and " + ("HF_HUB_OFFLINE forbids to ask the hub." if offline else "the hub cannot be reached."),
        got=None if offline else f"{type(error).__name__}: {error}",
        remedy=("unset HF_HUB_OFFLINE, or " if offline else "") + _BY_HAND,
    )


_BY_HAND = "download the files on another machine, copy them here, and give the path of their folder"


def _refusals() -> tuple[type[Exception], ...]:
    """Return the errors by which the hub itself says no: then the cache is not asked."""
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    return errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError


@contextmanager
def _plain_errors(spec: str, repository: str) -> Iterator[None]:
    """Say what the hub said as ModelFileError."""
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    def refuse(what: str, error: Any, remedy: str) -> ModelFileError:
        return ModelFileError(what, got=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, remedy=remedy)

    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except ModelFileError:
        raise
    except errors.GatedRepoError as error:
        raise refuse(
            f"Access to {repository} has to be granted by its owner.", error, f"ask for it on {page}, then set HF_TOKEN to your token"
        ) from None
    except errors.RepositoryNotFoundError as error:
        raise refuse(
            f"There is no model {repository} on the hub, or it is private.", error, f"look at {page}; for a private one set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError as error:
        raise refuse(
            f"{repository} on the hub has no such revision.", error, f"a branch, tag or commit that {page}/tree/main lists"
        ) from None
    except errors.HFValidationError as error:
        raise refuse(f"{spec} is not a name that the hub accepts.", error, "hub:owner/name") from None
    except Exception as error:  # network, disk, server: huggingface_hub raises many kinds
        raise refuse(f"{spec} could not be downloaded.", error, "try again, or " + _BY_HAND) from None


def _listing(files: list[str]) -> str:
    return ", ".join(sorted(files)[:8]) + (f", … ({len(files)} in all)" if len(files) > 8 else "") or "nothing"
