"""What each verb prints: tables for people on stdout, or JSON; progress and remarks on stderr."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kawara.config import parse_assignments, to_dict, to_yaml
from kawara.errors import ConfigError, DecodeError, UserError
from kawara.training.progress import Reporter, format_seconds

if TYPE_CHECKING:
    from kawara.edge.certificate import Certificate
    from kawara.verbs import BackboneEvaluation


def run(options: argparse.Namespace, *, started_at: float) -> int:
    """Run the verb that `options` name and return the exit code."""
    warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # the picture is used; its orientation is read where it can be
    return _VERBS[options.verb](options, started_at)


def _train(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.training.distributed import joined
    from kawara.training.launching import is_to_be_launched, launch

    if is_to_be_launched(options.devices) and not options.print_config:
        return launch(options.command_line, options.devices, device=options.device)
    request = verbs.TrainRequest(
        data=options.data,
        model=options.model,
        pretrained=options.pretrained,
        freeze=options.freeze,
        teacher=options.teacher,
        distill=options.distill,
        recipe=options.recipe,
        length=_length(options),
        image_size=options.image_size,
        out=options.out,
        seed=options.seed,
        resume=options.resume,
        device=options.device,
        config=options.config,
        settings=parse_assignments(options.set),
        check="strict" if options.strict else "off" if options.no_check else "on",
    )
    if options.print_config:
        with Reporter() as reporter:
            config = verbs.resolve(request, reporter)
        if options.json:
            _print_json(to_dict(config))
        else:
            print(to_yaml(config), end="")
        return 0
    with joined(options.device) as world, Reporter(quiet=not world.is_first) as reporter:
        result = verbs.run_training(request, reporter, started_at=started_at, world=world)
    if not world.is_first:
        return 130 if result.interrupted else 0
    if options.json:
        _print_json(result.to_dict())
        return 130 if result.interrupted else 0
    if result.interrupted:
        return 130
    _print_metrics(result.metrics, f"{result.split} images")
    print(f"\nmodel   {result.model_path}\nreport  {result.folder / 'report.html'}\ntime    {format_seconds(result.seconds)}")
    print(f"\nnext:  {_program()} predict {result.model_path} YOUR_IMAGES")
    return 0


def _check(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.check_wording import NEAR_SEARCH
    from kawara.report.tables import findings_table

    with Reporter() as reporter:
        found = verbs.check(options.data, model=options.model, out=options.out, device=options.device, reporter=reporter)
    code = 2 if options.strict and not found.is_clean else 0
    if options.json:
        _print_json(found.to_dict())
        return code
    gate = found.gate
    if gate.findings:
        _stdout().print(findings_table(gate))
        print()
    sizes = ", ".join(f"{name} {size:,}" for name, size in found.splits.items())
    print(f"{found.description} ({sizes})\n{NEAR_SEARCH[gate.near_search].en}")
    counts = ", ".join(f"{count:,} {severity if count == 1 else severity + 's'}" for severity, count in gate.counts().items())
    print(f"{gate.num_files:,} files: {gate.num_images:,} images are used, {len(gate.quarantined):,} are quarantined; {counts}")
    print(f"\nreport  {found.report}" if found.report else "\n--out DIR writes all of it as a page with pictures; --json prints it")
    return code


def _evaluate(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        evaluation: verbs.Evaluation | verbs.BackboneEvaluation = verbs.evaluate(
            options.model,
            options.data,
            protocol=options.protocol,
            split=options.split,
            shots=options.shots,
            neighbours=options.neighbours,
            seed=options.seed,
            merge=options.merge,
            device=options.device,
            batch_size=options.batch_size,
            reporter=reporter,
        )
    if options.json:
        _print_json(evaluation.to_dict())
        return 0
    if isinstance(evaluation, verbs.BackboneEvaluation):
        _print_backbone(evaluation)
    else:
        _print_metrics(evaluation.metrics, f"{evaluation.split} images")
    if evaluation.skipped:
        print(f"\n{len(evaluation.skipped)} files could not be read and are not counted:")
        for file in evaluation.skipped:
            print(f"  {file.path}: {file.reason}")
    if isinstance(evaluation, verbs.Evaluation):
        _print_classes(evaluation.per_class)
    return 0


def _predict(options: argparse.Namespace, started_at: float) -> int:
    from kawara.predict import Prediction, expand, load

    if options.json and options.csv:
        raise UserError("--json and --csv exclude each other.", remedy="one of them")
    if options.top < 1:
        raise UserError("--top is at least 1.", got=options.top)
    if options.engine != "local" and not options.out:
        raise UserError(f"--engine {options.engine} writes Parquet files.", remedy="--out DIR")
    files = expand(line.rstrip("\n") for line in sys.stdin if line.strip()) if options.images == ["-"] else expand(options.images)
    if options.out:
        return _label(options, files)
    predictor = load(options.model, device=options.device)
    writer = csv.writer(sys.stdout)
    failed = 0

    def answers() -> Iterator[Prediction]:
        nonlocal failed
        for start in range(0, len(files), options.batch_size):
            chunk = files[start : start + options.batch_size]
            reporter.progress("predicting", start / len(files), f"{start} of {len(files)}")
            try:
                yield from predictor.predict(chunk, top=options.top, batch_size=options.batch_size)
            except DecodeError:  # find which, and answer for the others
                for file in chunk:
                    try:
                        yield from predictor.predict([file], top=options.top)
                    except DecodeError as error:
                        failed += 1
                        reporter.say(f"kawara: {error}")

    table = Table("image", "label", "score", f"top {options.top}", box=None, pad_edge=False)
    with Reporter() as reporter:
        if options.csv:
            writer.writerow(
                ["path", "label", "score"] + [f"{what}_{rank}" for rank in range(2, options.top + 1) for what in ("label", "score")]
            )
        for answer in answers():
            if options.json:
                _print_json(answer.to_dict())
            elif options.csv:
                others = [value for guess in answer.top[1:] for value in (guess.label, f"{guess.score:.6f}")]
                writer.writerow([answer.path, answer.label, f"{answer.score:.6f}", *others])
            else:
                others_text = ", ".join(f"{guess.label} {guess.score:.1%}" for guess in answer.top[1:] if guess.score >= 0.0005)
                table.add_row(_plain(answer.path or ""), _plain(answer.label), f"{answer.score:.1%}", _plain(others_text))
    if not (options.json or options.csv):
        _stdout().print(table)
    if failed:
        print(f"kawara: {failed} of {len(files)} files could not be read.", file=sys.stderr)
    return 2 if failed else 0


def _label(options: argparse.Namespace, files: list[str]) -> int:
    from kawara import verbs

    if options.csv:
        raise UserError("--csv and --out exclude each other.", remedy="one of them")
    with Reporter() as reporter:
        found = verbs.label(
            options.model,
            files,
            options.out,
            engine=options.engine,
            top=options.top,
            batch_size=options.batch_size,
            device=options.device,
            reporter=reporter,
        )
    if options.json:
        _print_json(found.to_dict())
    else:
        print(f"{found.num_files - found.failed} of {found.num_files} images labelled in {found.folder}, {found.num_parts} Parquet files")
    if found.failed:
        print(f"kawara: {found.failed} of {found.num_files} files could not be read; the column error says why.", file=sys.stderr)
    return 2 if found.failed else 0


def _compare(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.tables import comparison_tables
    from kawara.report.verdict import verdict_explanation, verdict_sentence

    if options.threads < 1:
        raise UserError("--threads is at least 1.", got=options.threads)
    found: verbs.Comparison | None
    with Reporter() as reporter:
        if len(options.paths) == 1:
            found = verbs.compare(
                verbs.CompareRequest(
                    data=options.paths[0],
                    model=options.model,
                    twin=options.twin or "auto",
                    match=options.match or "params",
                    seeds=verbs.SEEDS if options.seeds is None else options.seeds,
                    recipe=options.recipe,
                    length=_length(options),
                    image_size=options.image_size,
                    settings=parse_assignments(options.set),
                    split=options.split,
                    out=options.out,
                    device=options.device,
                    threads=options.threads,
                ),
                reporter,
            )
        else:
            _check_two_models(options)
            found = verbs.compare_files(
                *options.paths,
                split=options.split,
                out=options.out,
                device=options.device,
                threads=options.threads,
                reporter=reporter,
            )
    if found is None:
        return 130
    if options.json:
        _print_json(found.to_dict())
        return 0
    record = found.record
    print(f"\n{record['num_images']:,} {record['split']} images, {record['num_classes']} classes\n")
    for table in comparison_tables(record):
        _stdout().print(table)
        print()
    print(f"{verdict_sentence(record).en}.\n{verdict_explanation(record).en}\n\nreport  {found.report}")
    return 0


def _check_two_models(options: argparse.Namespace) -> None:
    """Raise ConfigError unless the paths are two models and DATA, with none of the options of training."""
    if len(options.paths) != 3:
        raise ConfigError("compare takes DATA, or two model files and DATA.", got=f"{len(options.paths)} paths")
    names = ("model", "twin", "match", "recipe", "epochs", "steps", "minutes", "seeds", "image_size")
    idle = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None] + ["--set"] * bool(options.set)
    if idle:
        raise ConfigError("Two model files are compared as they are; these options act only in training.", got=", ".join(idle))


def _ablate(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.tables import ablation_table

    request = verbs.AblateRequest(
        data=options.data,
        model=options.model,
        recipe=options.recipe,
        seeds=verbs.SEEDS if options.seeds is None else options.seeds,
        length=_length(options),
        image_size=options.image_size,
        without=options.without,
        settings=parse_assignments(options.set),
        split=options.split,
        out=options.out,
        device=options.device,
    )
    with Reporter() as reporter:
        found = verbs.ablate(request, reporter)
    if found is None:
        return 130
    if options.json:
        _print_json(found.to_dict())
        return 0
    record = found.record
    seeds = len(record["training"]["seeds"])
    runs = f"{seeds} {'seed' if seeds == 1 else 'seeds'} each"
    print(f"\n{record['num_images']:,} {record['split']} images, {record['num_classes']} classes, {runs}")
    print("difference: without − complete, in points\n")
    _stdout().print(ablation_table(record))
    print(f"\nreport  {found.report}\nrecord  {found.folder / 'ablation.json'}")
    return 0


def _inspect(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        inspection = verbs.inspect(
            options.model,
            options.images,
            other=options.other,
            out=options.out,
            photos=options.photos,
            blocks=options.blocks,
            heads=options.heads,
            language=options.language,
            device=options.device,
            reporter=reporter,
        )
    if options.json:
        _print_json(inspection.to_dict())
        return 0
    table = Table("", "what the numbers say", "value", "line", box=None, pad_edge=False)
    for verdict in inspection.verdicts:
        in_japanese = options.language == "ja"
        sentence, line = (text.ja if in_japanese else text.en for text in (verdict.sentence, verdict.line))
        table.add_row(verdict.outcome, sentence, verdict.shown, line)
    _stdout().print(table)
    for path, reason in inspection.skipped:
        print(f"left out: {path}: {reason}")
    print(f"\nreport  {inspection.report}\ntime    {format_seconds(inspection.seconds)}")
    return 0


def _convert(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.weights.foreign import Hints

    hints = Hints(heads=options.heads, normalisation=options.normalise)
    conversion = verbs.convert(options.source, options.destination, options.to, hints)
    if options.json:
        _print_json(conversion.to_dict())
        return 0
    table = Table("in the source", "in kawara", "tensors", "", "how", box=None, pad_edge=False)
    for group in conversion.groups():
        table.add_row(*(_plain(text or "–") for text in (group.source, group.target, str(group.count), group.what, group.how)))
    _stdout().print(table)
    print(f"\n{conversion.total}")
    for note in conversion.notes:
        print(f"note: {note}")
    config, card = conversion.card.config, conversion.card
    height, width = config.image_size
    print(f"\nmodel   {card.name}: {conversion.num_parameters:,} parameters, {height}×{width} px, {len(card.class_names) or 'no'} classes")
    for path in conversion.files:
        print(f"wrote   {path}")
    return 0


def _export(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        exported = verbs.export(
            options.model,
            to=options.to,
            out=options.out,
            precision=options.precision,
            data=options.data,
            max_drop=options.max_drop,
            runtime=options.runtime,
            merge=options.merge,
            calibrate=options.calibrate,
            fallback=options.fallback,
            weight_bits=options.weight_bits,
            reporter=reporter,
        )
    certificate = exported.certificate
    if options.json:
        _print_json(exported.to_dict())
    else:
        for path in exported.files:
            print(f"wrote   {path}")
        print(f"wrote   {exported.certificate_path}")
        print(_certificate_line(certificate))
        if certificate.int8 is not None:
            print("\n".join(_int8_lines(certificate.int8)))
        if options.to == "web" and certificate.accepted:
            print(f"\nTo try it: python -m http.server -b 127.0.0.1 -d {exported.files[0]}, and open http://127.0.0.1:8000")
    for reason in certificate.refused:
        print(f"kawara: {certificate.file} is refused: {reason}.", file=sys.stderr)
    return 0 if certificate.accepted else 3


def _certificate_line(certificate: Certificate) -> str:
    difference = "not numbers" if certificate.max_difference is None else f"largest difference {certificate.max_difference:.1e}"
    parts = [
        f"{certificate.num_bytes / 1e6:.1f} MB",
        f"same answer for {certificate.agreement:.1%} of {certificate.num_images:,}, {difference}",
    ]
    if certificate.accuracy is not None:
        before, after = certificate.accuracy["torch"], certificate.accuracy["export"]
        low, high = after["top1_ci95"]
        parts.append(f"top-1 {after['top1']:.2%} ({low:.2%} – {high:.2%}), torch {before['top1']:.2%}")
    before, after = certificate.latency["torch"], certificate.latency["export"]
    parts.append(f"p50 {after['p50_ms']:.1f} ms, p95 {after['p95_ms']:.1f}, torch {before['p50_ms']:.1f}, {before['p95_ms']:.1f}")
    if "fp32" in certificate.latency:
        parts.append(f"{certificate.latency['speedup']:.2f} times as fast as fp32 ({certificate.latency['fp32']['p50_ms']:.1f} ms)")
    return " · ".join(parts)


def _int8_lines(record: dict[str, Any]) -> list[str]:
    """Return what there is to say of an int8 export: what was chosen, what stayed in float, which layers are to blame."""
    chosen = next(variant for variant in record["variants"] if variant["chosen"])
    calibration, kept = record["calibration"], record["float_layers"]
    smoothing = "SmoothQuant, " if chosen["smoothing"] else ""
    lines = [
        f"int8    {record['num_layers'] - len(kept)} of {record['num_layers']} layers, weights of {record['weight_bits']} bits, {smoothing}"
        f"ranges by {chosen['ranges']} on {calibration['num_images']} images ({calibration['images']})"
    ]
    if kept:
        lines.append(f"float   {', '.join(kept)}")
    lines += [
        f"blame   {damage['layer']}: KL {damage['kl']:.2g}, SNR {damage['snr_db']:.1f} dB, same answer {damage['agreement']:.1%}"
        for damage in (record["layers"] or [])[:5]
    ]
    return lines


def _bench(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.bench_page import bench_table, sentence

    request = verbs.BenchRequest(
        models=options.models,
        threads=options.threads,
        batches=options.batch,
        image_sizes=options.image_size,
        run_times=options.runtime,
        data=options.data,
        twin=options.twin,
        match=options.match,
        seconds=options.seconds,
        out=options.out,
    )
    with Reporter() as reporter:
        found = verbs.bench(request, reporter)
    if options.json:
        _print_json(found.to_dict())
        return 0
    print()
    _stdout().print(bench_table(found.record))
    for failure in found.record["failures"]:
        print(f"{failure['model']}, {failure['run_time']}: {failure['reason']}")
    print(f"\n{sentence(found.record).en}\n\nreport  {found.report}")
    return 0


def _models(options: argparse.Namespace, started_at: float) -> int:
    from kawara.verbs import describe_model, list_models

    if options.name:
        description = describe_model(options.name)
        if options.json:
            _print_json(description)
        else:
            for key, value in description.items():
                text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
                print(f"{key:<14}{text:,}" if isinstance(text, int) else f"{key:<14}{text}")
        return 0
    rows = list_models()
    if options.json:
        _print_json({"models": rows})
        return 0
    table = Table("model", "parameters", "GMACs", "image", "what it is", box=None, pad_edge=False)
    for row in rows:
        height, width = row["image_size"]
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['macs'] / 1e9:.3g}", f"{height}×{width}", row["description"])
    _stdout().print(table)
    return 0


def _recipes(options: argparse.Namespace, started_at: float) -> int:
    import inspect

    from kawara.recipes import RECIPES

    if options.name:
        recipe = RECIPES[options.name]
        if options.json:
            _print_json({"name": options.name, "description": inspect.getdoc(recipe), "config": to_dict(recipe())})
        else:
            print(f"{inspect.getdoc(recipe)}\n\n{to_yaml(recipe())}", end="")
        return 0
    summaries = {name: (inspect.getdoc(RECIPES[name]) or "").splitlines()[0] for name in RECIPES}
    if options.json:
        _print_json({"recipes": [{"name": name, "description": text} for name, text in summaries.items()]})
        return 0
    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, text in summaries.items():
        table.add_row(name, text)
    _stdout().print(table)
    print("\nkawara recipes NAME shows source, command, cost, expected result and all settings.")
    return 0


def _demo(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        demo = verbs.demo(options.out, reporter, started_at=started_at)
    if options.json:
        _print_json(demo.to_dict())
        return 0
    _print_metrics(demo.training.metrics, "test images, which it had not seen")
    print("\nSome test images, as `kawara predict` names them:")
    table = Table("image", "true", "predicted", "score", box=None, pad_edge=False)
    for path, truth, answer in demo.predictions:
        table.add_row(path, truth, answer.label, f"{answer.score:.1%}")
    _stdout().print(table)
    print(f"\nOpen {demo.training.folder / 'report.html'} in a browser. Then try:\n")
    for command in demo.commands:
        print(f"  {command.replace('kawara', _program(), 1)}")
    return 0


def _doctor(options: argparse.Namespace, started_at: float) -> int:
    from kawara.verbs import diagnose

    findings = diagnose()
    if options.json:
        _print_json(findings)
        return 0
    for name, value in findings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item or 'absent'}" for key, item in value.items())
        elif isinstance(value, list):
            value = "\n                    ".join(value) or "none"
        print(f"{name:<20}{value}")
    return 0


_VERBS = {
    "train": _train,
    "check": _check,
    "evaluate": _evaluate,
    "predict": _predict,
    "compare": _compare,
    "ablate": _ablate,
    "inspect": _inspect,
    "convert": _convert,
    "export": _export,
    "bench": _bench,
    "models": _models,
    "recipes": _recipes,
    "demo": _demo,
    "doctor": _doctor,
}


def _length(options: argparse.Namespace) -> str | None:
    """Return the length that was asked for, "30 epochs", or None."""
    amount = {"epochs": options.epochs, "steps": options.steps, "minutes": options.minutes}
    return next((f"{value:.15g} {unit}" for unit, value in amount.items() if value is not None), None)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _print_metrics(metrics: dict[str, Any], what: str) -> None:
    """Print the table of metrics with their intervals."""
    print(f"\n{metrics['num_images']:,} {what}, {metrics['num_classes']} classes (chance {1 / metrics['num_classes']:.1%})")
    table = Table("", "value", "95 % interval", box=None, pad_edge=False)
    for name, title in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy"), ("balanced_accuracy", "balanced accuracy")):
        if name == "top5" and metrics["num_classes"] <= 5:
            continue
        low, high = metrics[f"{name}_ci95"]
        table.add_row(title, f"{metrics[name]:.2%}", f"{low:.2%} – {high:.2%}")
    for name, title in (("nll", "negative log-likelihood"), ("ece", "calibration error (ECE)")):
        low, high = metrics[f"{name}_ci95"]
        table.add_row(title, f"{metrics[name]:.4f}", f"{low:.4f} – {high:.4f}")
    _stdout().print(table)
    if "agreement" in metrics:
        _print_agreement(metrics["agreement"])


def _print_agreement(agreement: dict[str, Any]) -> None:
    """Print how often teacher, heads and labels decide alike."""
    print("\nThey decide alike on this share of the images:")
    table = Table("", *agreement["who"], box=None, pad_edge=False)
    for name, row in zip(agreement["who"], agreement["same"]):
        table.add_row(name, *(f"{value:.1%}" for value in row))
    _stdout().print(table)


def _print_classes(rows: list[dict[str, Any]]) -> None:
    print()
    table = Table("class", "images", "recall", "precision", "mostly taken for", box=None, pad_edge=False)
    for row in rows:
        recall, precision = ("–" if row[key] is None else f"{row[key]:.1%}" for key in ("recall", "precision"))
        table.add_row(_plain(row["class"]), str(row["num_images"]), recall, precision, _plain(row["mostly_confused_with"] or ""))
    _stdout().print(table)


def _print_backbone(evaluation: BackboneEvaluation) -> None:
    """Print the accuracies of frozen features, a row for each number of shots or neighbours."""
    num_classes = len(evaluation.class_names)
    print(f"\n{evaluation.num_images:,} {evaluation.split} images, {num_classes} classes (chance {1 / num_classes:.1%}); ", end="")
    if evaluation.protocol == "knn":
        print(f"nearest of {evaluation.num_support:,} train images")
        table = Table("neighbours", "top-1 accuracy", "95 % interval", box=None, pad_edge=False)
        for row in evaluation.results:
            low, high = row["top1_ci95"]
            table.add_row(str(row["neighbours"]), f"{row['top1']:.2%}", f"{low:.2%} – {high:.2%}")
    else:
        print(f"linear classifiers on a few of {evaluation.num_support:,} train images")
        table = Table("images a class", "top-1 accuracy", "± (draws)", "each draw", box=None, pad_edge=False)
        for row in evaluation.results:
            values = ", ".join(f"{value:.2%}" for value in row["values"])
            table.add_row(str(row["shots"]), f"{row['mean']:.2%}", f"{row['std']:.2%}", values)
    _stdout().print(table)


def _program() -> str:
    """Return what a person has to type to start kawara here: `.venv/bin/kawara` where the environment is not active."""
    if shutil.which("kawara"):
        return "kawara"
    started_as = Path(sys.argv[0])
    return os.path.relpath(started_as) if started_as.name == "kawara" else "python -m kawara"


def _stdout() -> Console:
    """Return a console as wide as the terminal; piped output is never cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)
