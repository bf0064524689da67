"""`kawara export`: a model for other run times, with a certificate that it answers as torch does."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from kawara.edge import export as exports
from kawara.edge import web
from kawara.edge.certificate import Answer, Certificate, Comparison, compare, judge, time_in_turn
from kawara.edge.float_twin import write_float_twin
from kawara.edge.running import ProgramSession, Session, open_exported
from kawara.errors import ConfigError, UnknownNameError
from kawara.files import cannot_write, refuse_existing, write_json
from kawara.models.interface import ImageModel
from kawara.predict import Predictor
from kawara.runtime import environment, threads
from kawara.training.progress import Reporter
from kawara.verbs.export_images import Shown, calibration_images, compared_part, shown_noise, shown_of
from kawara.verbs.merging import Merged, merged
from kawara.verbs.quantising import Int8Export, Int8Settings
from kawara.weights import ModelCard, open_model

_THREADS = 1
_TWIN = "twin"
"""Name of the file that int8 is timed against; it is not kept."""


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
    merge: int | str | None = None,
    calibrate: str | Path | None = None,
    fallback: str | None = None,
    weight_bits: int | None = None,
    runtime: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Export:
    """Write a model with its whole preprocessing for another run time, and compare it with torch.

    Args:
        model: a model file, a checkpoint of others, or `hub:owner/name`.
        to: "onnx", "openvino", "torch" or "web".
        out: a file with the suffix of its kind, or a folder; by default beside the model. For "web", the folder to be made.
        precision: "fp32"; "fp16": weights in half precision, computed in float32; "int8": layers computed in whole numbers of 8 bits.
        data: labelled images, as for `evaluate`; without them no accuracy is certified. int8 needs them.
        max_drop: how many points of top-1 accuracy it may lose.
        merge: how many tokens each block merges, or "auto": as many as `max_drop` allows. None leaves it as the model has it.
        calibrate: for int8: images to measure ranges on; by default the train part of `data`, or a fifth that is set aside.
        fallback: for int8: "mixed" (default) leaves the worst layers in float where it loses too much, "none" refuses it.
        weight_bits: for int8: 8, or 7 for CPUs of x86 without VNNI; by default what this CPU needs.
        runtime: for "web", an address of onnxruntime-web, or its folder, which is copied; by default a public address.

    Raises:
        RunFolderError: there is something at the target, or it cannot be written.
        ConfigError: an option does not fit, the model has no classes or cannot be exported, or a package is missing.
        DataError: the data cannot be used, has classes that the model does not know, or too few images to calibrate with.
    """
    reporter = reporter or Reporter(quiet=True)
    target, kind = _checked(to, precision)
    if not 0 <= max_drop <= 100:
        raise ConfigError("--max-drop is a number of points.", got=max_drop, allowed="0 to 100")
    if runtime is not None and target != "web":
        raise ConfigError("--runtime is for --to web.", got=f"--to {to}")
    page = web.choose_runtime(runtime)
    settings = Int8Settings.checked(kind, data, calibrate, fallback, weight_bits)
    exports.check_packages(target)
    path = _destination(model, out, exports.SUFFIXES[target])
    report = path.with_name(f"{path.name}.certificate.json")
    for place in (path, report):
        refuse_existing(place)
    network, card, _ = open_model(model)
    predictor = Predictor(network, card)
    predictor.require_classes()
    merging = merged(predictor, merge, data=data, max_drop=max_drop, precision=kind, reporter=reporter)
    if merging is not None:
        assert isinstance(merging.predictor.model, ImageModel)
        network, card = merging.predictor.model, merging.predictor.card
    int8 = None
    if settings is None:
        shown = shown_noise(card, reporter) if data is None else shown_of(data, compared_part(data, card, reporter), card)
    else:
        part = compared_part(settings.data, card, reporter)
        calibration, positions = calibration_images(settings.data, settings.calibrate, part, card, reporter)
        shown = shown_of(settings.data, part, card, positions)
        int8 = Int8Export(network, calibration, card.preprocessing, settings, reporter)
        network = int8.network
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        comparison = None
        while True:
            with contextlib.nullcontext() if int8 is None else int8.in_place():
                sessions = _write(network, card, target, kind, folder / path.name, page, reporter)
            comparison = _compare(predictor, merging, sessions["export"], shown, comparison, reporter)
            found = judge(comparison, precision=kind, max_drop=max_drop, merges=bool(getattr(card.config, "merge", 0)))
            found["latency"] = _latency(predictor, sessions, shown)
            del sessions  # they may hold the files open
            for file in folder.glob(f"{_TWIN}.*"):
                file.unlink()
            if int8 is None or not int8.retreat(found, comparison, shown.images, max_drop):
                break
        certificate = Certificate(
            file=path.name,
            to=target,
            precision=kind,
            num_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            images=shown.what,
            environment=environment(),
            merging=None if merging is None else merging.record,
            int8=None if int8 is None else int8.to_dict(),
            **found,
        )
        files = _publish(folder, path, "" if certificate.accepted else ".rejected")
        write_json(report, certificate.to_dict())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Export(files, certificate, report)


def _write(
    network: ImageModel,
    card: ModelCard,
    target: exports.Target,
    kind: exports.Precision,
    made: Path,
    page: web.WebRuntime,
    reporter: Reporter,
) -> dict[str, Session]:
    """Trace a network, write it into the folder of `made`, and open it: the "export", and for int8 its "fp32" twin."""
    reporter.say(f"exporting {card.name}: takes up to a minute")
    for file in made.parent.iterdir():  # of an attempt before
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    program = exports.trace(network, card.preprocessing)
    stored: exports.Precision = "fp32" if kind == "int8" else kind  # int8 is in the network itself
    graph, twin = made.with_name("graph.onnx"), made.with_name(f"{_TWIN}.xml" if target == "openvino" else f"{_TWIN}.onnx")
    opened = made / web.MODEL_NAME if target == "web" else made
    try:
        if target == "torch":
            exports.write_torch(program, card, made)
            return {"export": ProgramSession(program.module())}
        exports.write_onnx(program, card, graph, "fp32" if target == "openvino" else stored)
        if kind == "int8":
            write_float_twin(graph, made.with_name(f"{_TWIN}.onnx"))
        if target == "onnx":
            graph.rename(made)
        elif target == "web":
            made.mkdir()
            graph.rename(opened)
            web.add_page(made, card, kind, page)
            if page.folder:
                reporter.say(f"copied onnxruntime-web: {page.num_bytes / 1e6:.1f} MB")
        else:
            exports.write_openvino(graph, card, made, stored)
            graph.unlink()
            if kind == "int8":
                exports.write_openvino(made.with_name(f"{_TWIN}.onnx"), card, twin)
        sessions: dict[str, Session] = {"export": open_exported(opened, _THREADS)[0]}
        if kind == "int8":
            sessions["fp32"] = open_exported(twin, _THREADS)[0]
        return sessions
    except OSError as error:
        raise cannot_write(made, error) from None


def _publish(folder: Path, path: Path, ending: str) -> list[Path]:
    """Move what is in `folder` beside `path`; return where it is now."""
    written = sorted(folder.iterdir())
    files = [path.with_name(file.name + ending) for file in written]
    try:
        # The file that names the others comes last: whoever sees it sees all.
        for file, place in sorted(zip(written, files), key=lambda pair: pair[0].name == path.name):
            os.replace(file, place)
    except OSError as error:
        raise cannot_write(path, error) from None
    return files


def _compare(
    predictor: Predictor, merging: Merged | None, session: Session, shown: Shown, before: Comparison | None, reporter: Reporter
) -> Comparison:
    """Ask torch and a session about every image; torch not again where an attempt before did."""
    reference, original = (_of_torch(predictor), None) if merging is None else (_of_torch(merging.predictor), _of_torch(predictor))
    if before is not None:
        reference, original = _known(before.reference), None if before.original is None else _known(before.original)

    def counted() -> Iterator[np.ndarray]:
        for number, image in enumerate(shown.images()):
            reporter.progress("comparing with torch", number / len(shown.keys), f"{number} of {len(shown.keys)}")
            yield image

    with threads(_THREADS):
        return compare(counted(), shown.labels, shown.keys, reference, lambda image: session(image[None])[0], original)


def _known(answers: np.ndarray) -> Answer:
    rows = iter(answers)
    return lambda _: next(rows)


def _latency(predictor: Predictor, sessions: dict[str, Session], shown: Shown) -> dict[str, Any]:
    asked: dict[str, Answer] = {"torch": _of_torch(predictor)}
    for name, session in sessions.items():
        asked[name] = lambda image, session=session: session(image[None])[0]
    with threads(_THREADS):
        return {**time_in_turn(next(shown.images()), asked), "threads": torch.get_num_threads()}


def _of_torch(predictor: Predictor) -> Answer:
    place = predictor.card.preprocessing.place
    return lambda image: predictor.probabilities(place(image)[None])[0].numpy()


def _checked(to: str, precision: str) -> tuple[exports.Target, exports.Precision]:
    for target in get_args(exports.Target):
        if target == to:
            break
    else:
        raise UnknownNameError("format to export to", to, get_args(exports.Target))
    for kind in get_args(exports.Precision):
        if kind == precision:
            break
    else:
        raise UnknownNameError("precision", precision, get_args(exports.Precision))
    if target == "torch" and kind != "fp32":
        raise ConfigError("A program of torch is written in fp32.", got=precision, remedy="--to onnx or --to openvino, for fp16 and int8")
    return target, kind


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
