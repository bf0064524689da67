"""What an inspection says of models and images before it measures: names, sizes, which photos come first, whose attention is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kawara.analysis.cost import count_macs, count_parameters
from kawara.analysis.observed_attention import attention_places, require_attention, token_layout
from kawara.analysis.places import block_places
from kawara.errors import ConfigError
from kawara.models import ImageModel, family_of
from kawara.report.inspection_page import ModelFacts
from kawara.report.wording import Text, split_name
from kawara.verbs.inspection_images import ImageSet
from kawara.verbs.inspection_measures import Subject
from kawara.weights import ModelCard

NUM_DEPTHS_SHOWN = 4
MAX_HEADS_SHOWN = 6


def groups_to_look_at(probabilities: Tensor, labels: Tensor | None, wanted: int) -> list[tuple[Text, Text, list[int]]]:
    """Return which images to look at first, in groups that share none: of `wanted` a third each, what is left over to the last."""
    top = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
    confidence, margin = top[:, 0].numpy(), (top[:, 0] - top[:, -1]).numpy()
    everything = np.arange(len(confidence))
    if labels is None:
        confused = margin.argsort(kind="stable")
        text = (
            Text("Most confused", "最も迷った画像"),
            Text("The first two guesses are nearly as likely.", "上位2クラスの確率がほぼ同じ画像です。"),
        )
    else:
        wrong = everything[(probabilities.argmax(dim=1) != labels).numpy()]
        confused = wrong[(-confidence[wrong]).argsort(kind="stable")]
        text = (
            Text("Most confident mistakes", "自信をもって間違えた画像"),
            Text(
                "Look here first: sometimes it is the label that is wrong.",
                "まずここを確認してください。ラベルの方が誤っていることもあります。",
            ),
        )
    orders = [
        (*text, confused),
        (
            Text("Least confident", "確信度が最も低い画像"),
            Text("The likeliest class has the lowest probability.", "最も確率の高いクラスでも、その確率が低い画像です。"),
            confidence.argsort(kind="stable"),
        ),
        (
            Text("Most confident", "確信度が最も高い画像"),
            Text("For comparison.", "比較のための例です。"),
            (-confidence).argsort(kind="stable"),
        ),
    ]
    taken: set[int] = set()
    groups = []
    for number, (title, note, order) in enumerate(orders):
        room = -(-(wanted - len(taken)) // (len(orders) - number))
        chosen = [int(index) for index in order if int(index) not in taken][:room]
        taken.update(chosen)
        if chosen:
            groups.append((title, note, chosen))
    return groups


def chosen_attention(
    model: ImageModel, blocks: Sequence[int] | None, heads: Sequence[int] | None
) -> tuple[list[int] | None, list[int] | None]:
    """Return which attention layers and heads to draw, from 0. Raises ConfigError for what the model does not have."""
    if blocks is None and heads is None and not attention_places(model):
        return None, None
    places = require_attention(model)
    num_heads = min(int(getattr(model.get_submodule(place), "heads")) for place in places)  # noqa: B009
    spread = np.linspace(0, len(places) - 1, min(NUM_DEPTHS_SHOWN, len(places))).round().astype(int).tolist()
    return (
        spread if blocks is None else _from_one(blocks, len(places), "block"),
        list(range(min(num_heads, MAX_HEADS_SHOWN))) if heads is None else _from_one(heads, num_heads, "head"),
    )


def _from_one(numbers: Sequence[int], count: int, kind: str) -> list[int]:
    for number in numbers:
        if not 1 <= number <= count:
            raise ConfigError(f"There is no such {kind}.", got=number, allowed=f"1 to {count}")
    return [number - 1 for number in numbers]


def distinct(cards: list[ModelCard]) -> list[ModelCard]:
    """Return the cards, two of one name told apart."""
    if len(cards) == 2 and cards[0].name == cards[1].name:
        return [cards[0], dataclasses.replace(cards[1], name=f"{cards[1].name} (2)")]
    return cards


def labels_of(labels: Tensor | None, first: ModelCard, card: ModelCard) -> Tensor | None:
    """Return labels as positions in the classes of `card`, None where it does not know one of them."""
    if labels is None or card.class_names == first.class_names:
        return labels
    position = {name: index for index, name in enumerate(card.class_names)}
    names = [first.class_names[label] for label in labels.tolist()]
    return torch.tensor([position[name] for name in names]) if set(names) <= set(position) else None


def shown_class_names(card: ModelCard) -> tuple[str, ...]:
    """Return the names of the classes; where a checkpoint of others has only numbers, say so."""
    names = card.class_names or tuple(map(str, range(card.config.num_classes)))
    is_numbered = names == tuple(map(str, range(len(names))))
    return tuple(f"class {name}" for name in names) if is_numbered and (not card.class_names or "source" in card.data) else names


def facts(subject: Subject, path: str) -> ModelFacts:
    """Return what a model is, in short."""
    places = attention_places(subject.model)
    tokens = None
    if places:
        layout = token_layout(subject.model, subject.normalised([0]))
        h, w = layout.grid
        plus = "".join(f" + {name}" for name in layout.prefix) if layout.num_prefix <= 2 else f" + {layout.num_prefix}"
        tokens = Text(f"{h} × {w} patches{plus}", f"パッチ {h} × {w}{plus}")
    try:
        num_blocks = len(block_places(subject.model))
    except ConfigError:
        num_blocks = None
    return ModelFacts(
        name=subject.card.name,
        path=path,
        family=family_of(subject.card.config),
        num_parameters=count_parameters(subject.model),
        macs=count_macs(subject.model),
        image_size=subject.card.preprocessing.image_size,
        num_classes=subject.model.config.num_classes,
        num_blocks=num_blocks,
        num_heads=int(getattr(subject.model.get_submodule(places[0]), "heads")) if places else None,  # noqa: B009
        tokens=tokens,
    )


def images_text(found: ImageSet) -> Text:
    """Return how many images there are, of which part, with labels or without."""
    part = split_name(found.part) if found.labels is not None and found.part not in (None, "all") else Text("", "")
    kind = Text(f"{part.en} images".strip(), f"{part.ja}画像")
    looked = Text(f"{len(found):,} {kind.en}", f"{kind.ja}{len(found):,}枚")
    if found.num_found > len(found):
        looked = Text(f"{len(found):,} of {found.num_found:,} {kind.en}", f"{kind.ja}{found.num_found:,}枚のうち{len(found):,}枚")
    labels = Text("with labels", "ラベル付き") if found.labels is not None else Text("without labels", "ラベルなし")
    return Text(f"{looked.en}, {labels.en}", f"{looked.ja}（{labels.ja}）")
