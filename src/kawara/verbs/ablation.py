"""`kawara ablate`: the recipe with one ingredient out at a time. What is each of them worth on these images?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kawara.analysis import comparison
from kawara.errors import ConfigError
from kawara.files import write_json
from kawara.recipes.ingredients import INGREDIENTS, Ingredient, ingredients_of
from kawara.report.ablation_page import write_ablation_page
from kawara.runtime import environment
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.verbs.answering import answer
from kawara.verbs.comparison import SEEDS, side_record
from kawara.verbs.contenders import Contender, at_work, earlier_choices, keep_choices, out_folder, resolved, seeds_of, train_contenders
from kawara.verbs.continuing import stem_of
from kawara.verbs.planning import TrainRequest

RECORD, REPORT = "ablation.json", "report.html"
_COMPLETE = "complete recipe"


@dataclass(frozen=True)
class AblateRequest:
    """What a person asks of `kawara ablate DATA`. `without` None: everything that the recipe has, one at a time."""

    data: str
    model: str | None = None
    recipe: str | None = None
    seeds: int = SEEDS
    length: str | None = None
    image_size: int | None = None
    without: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    out: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Ablation:
    """What each ingredient is worth. `record` holds JSON values; docs/json.md says which."""

    folder: Path
    record: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / REPORT

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"folder": str(self.folder), "report": str(self.report), **self.record}


def ablate(request: AblateRequest, reporter: Reporter) -> Ablation | None:
    """Train the complete recipe and the recipe without each ingredient, over several seeds; None where somebody interrupted.

    The same command with the same `out` goes on where it was interrupted.

    Raises ConfigError for an ingredient that the recipe does not have.
    """
    seeds = seeds_of(request.seeds)
    out = out_folder(request.out, f"ablate-{stem_of(request.data)}")
    with at_work(out, reporter):
        return _ablate(request, seeds, out, reporter)


def _ablate(request: AblateRequest, seeds: Sequence[int], out: Path, reporter: Reporter) -> Ablation | None:
    asked = TrainRequest(
        request.data, model=request.model, recipe=request.recipe, length=request.length, image_size=request.image_size,
        device=request.device, settings=request.settings,
    )  # fmt: skip
    written, config = resolved(asked, earlier_choices(out))
    removed = _chosen(request.without, config)
    keep_choices(out, {"model": config.model.name, "image_size": config.data.image_size})
    reporter.say(
        f"{config.model.name}, recipe {config.recipe}, {config.length}; without, in turn: {', '.join(each.name for each in removed)}."
    )
    contenders = [Contender(_COMPLETE, "complete", written)]
    for each in removed:
        changed = dataclasses.replace(written, settings={**request.settings, **each.without})
        contenders.append(Contender(f"without {each.name}", f"without-{each.name}", changed))
    sides = train_contenders(contenders, seeds, out, reporter)
    if sides is None:
        reporter.say(f"Nothing is lost: the same command with --out {out} goes on.")
        return None
    answered = answer(sides, request.data, split=request.split, device=request.device, reporter=reporter, spoil=False)
    complete = answered.sides[0]
    rows = []
    for ingredient, side, answers in zip([None, *removed], sides, answered.sides):
        verdict = comparison.judge(answers.right, complete.right).to_dict() if ingredient else None
        without = (
            {}
            if ingredient is None
            else {
                "without": ingredient.name,
                "description": ingredient.description,
                "description_ja": ingredient.description_ja,
                "explanation": ingredient.explanation,
                "explanation_ja": ingredient.explanation_ja,
                "arxiv": ingredient.arxiv,
                "settings": ingredient.without,
            }
        )
        rows.append(without | side_record(side, answers) | {"verdict": verdict})
    record = {
        "data": request.data,
        "split": answered.split,
        "num_images": answered.num_images,
        "num_classes": answered.num_classes,
        "training": {"recipe": config.recipe, "length": config.length, "image_size": config.data.image_size, "seeds": list(seeds)},
        "complete": rows[0],
        "rows": rows[1:],
        "environment": environment() | {"device": str(complete.model.device)},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, record)
    write_ablation_page(out / REPORT, record)
    return Ablation(out, record)


def _chosen(without: Sequence[str] | None, config: RunConfig) -> list[Ingredient]:
    """Return the ingredients to take out. Raises ConfigError where one is not in the recipe."""
    has = ingredients_of(config)
    if without is None:
        return has
    chosen = [INGREDIENTS[name] for name in dict.fromkeys(without)]
    absent = [each.name for each in chosen if each not in has]
    if absent:
        raise ConfigError(
            f"The recipe {config.recipe} does without that already.",
            got=", ".join(absent),
            allowed=", ".join(each.name for each in has),
        )
    return chosen
