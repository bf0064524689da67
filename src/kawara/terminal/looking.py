"""What the verbs that look at images and models print: check, evaluate, predict, inspect."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from kawara.errors import DecodeError, UserError
from kawara.terminal.printing import plain, print_backbone, print_classes, print_json, print_metrics, stdout
from kawara.training.progress import Reporter, format_seconds

if TYPE_CHECKING:
    pass


def check(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.check_wording import NEAR_SEARCH
    from kawara.report.tables import findings_table

    with Reporter() as reporter:
        found = verbs.check(options.data, model=options.model, out=options.out, device=options.device, reporter=reporter)
    code = 2 if options.strict and not found.is_clean else 0
    if options.json:
        print_json(found.to_dict())
        return code
    gate = found.gate
    if gate.findings:
        stdout().print(findings_table(gate))
        print()
    sizes = ", ".join(f"{name} {size:,}" for name, size in found.splits.items())
    print(f"{found.description} ({sizes})\n{NEAR_SEARCH[gate.near_search].en}")
    counts = ", ".join(f"{count:,} {severity if count == 1 else severity + 's'}" for severity, count in gate.counts().items())
    print(f"{gate.num_files:,} files: {gate.num_images:,} images are used, {len(gate.quarantined):,} are quarantined; {counts}")
    print(f"\nreport  {found.report}" if found.report else "\n--out DIR writes all of it as a page with pictures; --json prints it")
    return code


def evaluate(options: argparse.Namespace, started_at: float) -> int:
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
        print_json(evaluation.to_dict())
        return 0
    if isinstance(evaluation, verbs.BackboneEvaluation):
        print_backbone(evaluation)
    else:
        print_metrics(evaluation.metrics, f"{evaluation.split} images")
    if evaluation.skipped:
        print(f"\n{len(evaluation.skipped)} files could not be read and are not counted:")
        for file in evaluation.skipped:
            print(f"  {file.path}: {file.reason}")
    if isinstance(evaluation, verbs.Evaluation):
        print_classes(evaluation.per_class)
    return 0


def predict(options: argparse.Namespace, started_at: float) -> int:
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
                print_json(answer.to_dict())
            elif options.csv:
                others = [value for guess in answer.top[1:] for value in (guess.label, f"{guess.score:.6f}")]
                writer.writerow([answer.path, answer.label, f"{answer.score:.6f}", *others])
            else:
                others_text = ", ".join(f"{guess.label} {guess.score:.1%}" for guess in answer.top[1:] if guess.score >= 0.0005)
                table.add_row(plain(answer.path or ""), plain(answer.label), f"{answer.score:.1%}", plain(others_text))
    if not (options.json or options.csv):
        stdout().print(table)
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
        print_json(found.to_dict())
    else:
        print(f"{found.num_files - found.failed} of {found.num_files} images labelled in {found.folder}, {found.num_parts} Parquet files")
    if found.failed:
        print(f"kawara: {found.failed} of {found.num_files} files could not be read; the column error says why.", file=sys.stderr)
    return 2 if found.failed else 0


def inspect(options: argparse.Namespace, started_at: float) -> int:
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
        print_json(inspection.to_dict())
        return 0
    table = Table("", "what the numbers say", "value", "line", box=None, pad_edge=False)
    for verdict in inspection.verdicts:
        in_japanese = options.language == "ja"
        sentence, line = (text.ja if in_japanese else text.en for text in (verdict.sentence, verdict.line))
        table.add_row(verdict.outcome, sentence, verdict.shown, line)
    stdout().print(table)
    for path, reason in inspection.skipped:
        print(f"left out: {path}: {reason}")
    print(f"\nreport  {inspection.report}\ntime    {format_seconds(inspection.seconds)}")
    return 0
