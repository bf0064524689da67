"""What the verbs that tell of kawara itself print: models, recipes, doctor."""

from __future__ import annotations

import argparse

from rich.table import Table

from kawara.config import to_dict, to_yaml
from kawara.terminal.printing import print_json, stdout


def models(options: argparse.Namespace, started_at: float) -> int:
    from kawara.verbs import describe_model, list_models

    if options.name:
        description = describe_model(options.name)
        if options.json:
            print_json(description)
        else:
            for key, value in description.items():
                text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
                print(f"{key:<14}{text:,}" if isinstance(text, int) else f"{key:<14}{text}")
        return 0
    rows = list_models()
    if options.json:
        print_json({"models": rows})
        return 0
    table = Table("model", "parameters", "GMACs", "image", "what it is", box=None, pad_edge=False)
    for row in rows:
        height, width = row["image_size"]
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['macs'] / 1e9:.3g}", f"{height}×{width}", row["description"])
    stdout().print(table)
    return 0


def recipes(options: argparse.Namespace, started_at: float) -> int:
    import inspect

    from kawara.recipes import RECIPES

    if options.name:
        recipe = RECIPES[options.name]
        if options.json:
            print_json({"name": options.name, "description": inspect.getdoc(recipe), "config": to_dict(recipe())})
        else:
            print(f"{inspect.getdoc(recipe)}\n\n{to_yaml(recipe())}", end="")
        return 0
    summaries = {name: (inspect.getdoc(RECIPES[name]) or "").splitlines()[0] for name in RECIPES}
    if options.json:
        print_json({"recipes": [{"name": name, "description": text} for name, text in summaries.items()]})
        return 0
    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, text in summaries.items():
        table.add_row(name, text)
    stdout().print(table)
    print("\nkawara recipes NAME shows source, command, cost, expected result and all settings.")
    return 0


def doctor(options: argparse.Namespace, started_at: float) -> int:
    from kawara.verbs import diagnose

    findings = diagnose()
    if options.json:
        print_json(findings)
        return 0
    for name, value in findings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item or 'absent'}" for key, item in value.items())
        elif isinstance(value, list):
            value = "\n                    ".join(value) or "none"
        print(f"{name:<20}{value}")
    return 0
