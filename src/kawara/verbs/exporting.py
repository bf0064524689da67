"""`kawara export`: a model for other run times, with a certificate that it answers as torch does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from kawara.data.sources import ImageSplit
from kawara.edge import certificate as certificates
from kawara.edge import export as exports
from kawara.edge import web
from kawara.edge.certificate import Certificate
from kawara.edge.running import ProgramSession, Session, open_exported
from kawara.errors import ConfigError, UnknownNameError
from kawara.files import cannot_write, refuse_existing, write_json
from kawara.models import ImageModel
from kawara.predict import Predictor
from kawara.runtime import environment, threads
from kawara.training.progress import Reporter
from kawara.verbs.evaluation import labelled_parts
from kawara.verbs.merging import merged
from kawara.weights import ModelCard, open_model

_THREADS = 1


@dataclass(frozen=True)
class Export:
    """What was written. Refused files are kept with `.rejected` behind their names."""

    files: list[Path]
    certificate: Certificate
    certificate_path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        paths = {"files": [str(path) for path in self.files], "certificate": str(self.certificate_path)}
        return {**paths, **self.certificate.to_dict()}


def export(
    model: str | Path,
    *,
    to: str = "onnx",
    out: str | Path | None = None,
    precision: str = "fp32",
    data: str | Path | None = None,
    max_drop: float = 0.5,
    runtime: str | Path | None = None,
    merge: int | str | None = None,
    reporter: Reporter | None = None,
) -> Export:
    """Write a model with its whole preprocessing for another run time, and compare it with torch.

    Args:
        model: a model file, a checkpoint of others, or `hub:owner/name`.
        to: "onnx", "openvino", "torch" or "web".
        out: a file with the suffix of its kind, or a folder; by default beside the model. For "web", the folder to be made.
        precision: "fp32", or "fp16": weights in half precision, computed in float32.
        data: labelled images, as for `evaluate`; without them no accuracy is certified.
        max_drop: how many points of top-1 accuracy it may lose.
        runtime: for "web", an address of onnxruntime-web, or its folder, which is copied; by default a public address.
        merge: how many tokens each block merges, or "auto": as many as `max_drop` allows. None leaves it as the model has it.

    Raises:
        RunFolderError: there is something at the target, or it cannot be written.
        ConfigError: an option does not fit, the model has no classes or cannot be exported, or a package is missing.
        DataError: the data cannot be used, or has classes that the model does not know.
    """
    reporter = reporter or Reporter(quiet=True)
    target, half = _checked(to, precision)
    if not 0 <= max_drop <= 100:
        raise ConfigError("--max-drop is a number of points.", got=max_drop, allowed="0 to 100")
    if runtime is not None and target != "web":
        raise ConfigError("--runtime is for --to web.", got=f"--to {to}")
    web_runtime = web.choose_runtime(runtime)
    exports.check_packages(target)
    path = _destination(model, out, exports.SUFFIXES[target])
    report = path.with_name(f"{path.name}.certificate.json")
    for place in (path, report):
        refuse_existing(place)
    network, card, _ = open_model(model)
    predictor = Predictor(network, card)
    predictor.require_classes()
    shown = _labelled(data, card, reporter) if data is not None else _noise(card, reporter)
    merging = merged(predictor, merge, data=data, max_drop=max_drop, precision=precision, reporter=reporter)
    served = predictor if merging is None else merging.predictor
    network, card = served.model, served.card
    assert isinstance(network, ImageModel)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        reporter.say(f"exporting {card.name}: takes up to a minute")
        program = exports.trace(network, card.preprocessing)
        made = folder / path.name
        try:
            if target == "torch":
                exports.write_torch(program, card, made)
            elif target == "onnx":
                exports.write_onnx(program, card, made, half)
            elif target == "web":
                made.mkdir()
                exports.write_onnx(program, card, made / web.MODEL_NAME, half)
                web.add_page(made, card, half, web_runtime)
                if web_runtime.folder:
                    reporter.say(f"copied onnxruntime-web: {web_runtime.num_bytes / 1e6:.1f} MB")
            else:
                graph = folder / "graph.onnx"
                exports.write_onnx(program, card, graph)
                exports.write_openvino(graph, card, made, half)
                graph.unlink()
        except OSError as error:
            raise cannot_write(path, error) from None
        with threads(_THREADS):
            graph = made / web.MODEL_NAME if target == "web" else made
            session: Session = ProgramSession(program.module()) if target == "torch" else open_exported(graph, _THREADS)[0]
            written = sorted(folder.iterdir())
            found = _certify(predictor, served, session, shown, half, max_drop, reporter)
        del session  # it may hold the files open
        certificate = Certificate(
            file=path.name,
            to=target,
            precision=half,
            num_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            images=shown.what,
            environment=environment(),
            merging=None if merging is None else merging.record,
            **found,
        )
        ending = "" if certificate.accepted else ".rejected"
        # The file that names the others comes last: whoever sees it sees all.
        files = [path.with_name(file.name + ending) for file in written]
        try:
            for file, place in sorted(zip(written, files), key=lambda pair: pair[0].name == path.name):
                os.replace(file, place)
        except OSError as error:
            raise cannot_write(path, error) from None
        write_json(report, certificate.to_dict())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Export(files, certificate, report)


@dataclass(frozen=True)
class _Shown:
    """The images that both are asked about."""

    what: str
    images: Callable[[], Iterator[np.ndarray]]
    keys: list[str]
    labels: np.ndarray | None


def _labelled(data: str | Path, card: ModelCard, reporter: Reporter) -> _Shown:
    parts, _ = labelled_parts(data, card, None, reporter)

    def images() -> Iterator[np.ndarray]:
        return (part.store[index] for part in parts for index in range(len(part)))

    def joined(get: Callable[[ImageSplit], Any]) -> list[Any]:
        return [value for part in parts for value in get(part)]

    labels = np.array(joined(lambda part: part.labels), dtype=np.int64)
    return _Shown(f"{data}, {'+'.join(part.name for part in parts)}", images, joined(lambda part: part.keys), labels)


def _noise(card: ModelCard, reporter: Reporter) -> _Shown:
    reporter.say("Without --data only random images are compared: no accuracy is certified.")
    side = card.preprocessing.stored_side
    images = certificates.noise_images(card.preprocessing.channels, (side // 3 + 1, side, side + 33, 2 * side + 1))
    return _Shown(
        "random pixels", lambda: iter(images), [f"random image {i}, {x.shape[0]}×{x.shape[1]}" for i, x in enumerate(images)], None
    )


def _certify(
    predictor: Predictor, served: Predictor, session: Session, shown: _Shown, precision: str, max_drop: float, reporter: Reporter
) -> dict[str, Any]:
    def original(image: np.ndarray) -> np.ndarray:
        return predictor.probabilities(predictor.card.preprocessing.place(image)[None])[0].numpy()

    def reference(image: np.ndarray) -> np.ndarray:
        return served.probabilities(served.card.preprocessing.place(image)[None])[0].numpy()

    def exported(image: np.ndarray) -> np.ndarray:
        return session(image[None])[0]

    def counted() -> Iterator[np.ndarray]:
        for number, image in enumerate(shown.images()):
            reporter.progress("comparing with torch", number / len(shown.keys), f"{number} of {len(shown.keys)}")
            yield image

    asked = original if served is not predictor else None
    comparison = certificates.compare(counted(), shown.labels, shown.keys, reference, exported, asked)
    latency = certificates.time_both(next(shown.images()), original, exported)
    latency["threads"] = torch.get_num_threads()
    merges = bool(getattr(served.card.config, "merge", 0))
    return {**certificates.judge(comparison, precision=precision, max_drop=max_drop, merges=merges), "latency": latency}


def _checked(to: str, precision: str) -> tuple[exports.Target, exports.Precision]:
    for target in get_args(exports.Target):
        if target == to:
            break
    else:
        raise UnknownNameError("format to export to", to, get_args(exports.Target))
    for half in get_args(exports.Precision):
        if half == precision:
            break
    else:
        raise UnknownNameError("precision", precision, get_args(exports.Precision))
    if target == "torch" and half != "fp32":
        raise ConfigError("A program of torch is written in fp32.", got=precision, remedy="--to onnx or --to openvino, for fp16")
    return target, half


def _destination(model: str | Path, out: str | Path | None, suffix: str) -> Path:
    """Return the file to write: `out`, a file in the folder `out`, or one beside the model. Without a suffix: the folder to make."""
    source = Path("model" if str(model).startswith("hub:") else model)
    source = source / "model" if source.is_dir() else source
    name = source.with_suffix(suffix).name
    if not suffix:
        path = source.with_name(f"{source.stem}-web") if out is None else Path(out)
        if not path.name:
            raise ConfigError("The target is a folder that does not exist yet.", got=out)
    elif out is None:
        path = source.with_suffix(suffix)
    elif Path(out).is_dir():
        path = Path(out) / name
    elif Path(out).suffix == suffix:
        path = Path(out)
    else:
        raise ConfigError("The target does not fit the format.", got=out, allowed=f"a {suffix} file, or a folder that exists")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}.", remedy=f"mkdir -p {path.parent}")
    return path
