"""What the verbs that train print: train, compare, ablate, demo."""

from __future__ import annotations

import argparse

from rich.table import Table

from kawara.config import parse_assignments, to_dict, to_yaml
from kawara.errors import ConfigError, UserError
from kawara.terminal.printing import print_json, print_metrics, program, stdout
from kawara.training.progress import Reporter, format_seconds


def train(options: argparse.Namespace, started_at: float) -> int:
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
            print_json(to_dict(config))
        else:
            print(to_yaml(config), end="")
        return 0
    with joined(options.device) as world, Reporter(quiet=not world.is_first) as reporter:
        result = verbs.run_training(request, reporter, started_at=started_at, world=world)
    if not world.is_first:
        return 130 if result.interrupted else 0
    if options.json:
        print_json(result.to_dict())
        return 130 if result.interrupted else 0
    if result.interrupted:
        return 130
    print_metrics(result.metrics, f"{result.split} images")
    print(f"\nmodel   {result.model_path}\nreport  {result.folder / 'report.html'}\ntime    {format_seconds(result.seconds)}")
    print(f"\nnext:  {program()} predict {result.model_path} YOUR_IMAGES")
    return 0


def compare(options: argparse.Namespace, started_at: float) -> int:
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
        print_json(found.to_dict())
        return 0
    record = found.record
    print(f"\n{record['num_images']:,} {record['split']} images, {record['num_classes']} classes\n")
    for table in comparison_tables(record):
        stdout().print(table)
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


def ablate(options: argparse.Namespace, started_at: float) -> int:
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
        print_json(found.to_dict())
        return 0
    record = found.record
    seeds = len(record["training"]["seeds"])
    runs = f"{seeds} {'seed' if seeds == 1 else 'seeds'} each"
    print(f"\n{record['num_images']:,} {record['split']} images, {record['num_classes']} classes, {runs}")
    print("difference: without − complete, in points\n")
    stdout().print(ablation_table(record))
    print(f"\nreport  {found.report}\nrecord  {found.folder / 'ablation.json'}")
    return 0


def demo(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        demo = verbs.demo(options.out, reporter, started_at=started_at)
    if options.json:
        print_json(demo.to_dict())
        return 0
    print_metrics(demo.training.metrics, "test images, which it had not seen")
    print("\nSome test images, as `kawara predict` names them:")
    table = Table("image", "true", "predicted", "score", box=None, pad_edge=False)
    for path, truth, answer in demo.predictions:
        table.add_row(path, truth, answer.label, f"{answer.score:.1%}")
    stdout().print(table)
    print(f"\nOpen {demo.training.folder / 'report.html'} in a browser. Then try:\n")
    for command in demo.commands:
        print(f"  {command.replace('kawara', program(), 1)}")
    return 0


def _length(options: argparse.Namespace) -> str | None:
    """Return the length that was asked for, "30 epochs", or None."""
    amount = {"epochs": options.epochs, "steps": options.steps, "minutes": options.minutes}
    return next((f"{value:.15g} {unit}" for unit, value in amount.items() if value is not None), None)
