"""Open a model, whoever wrote it: kawara's own files, checkpoints of others, names on the Hugging Face hub.

A checkpoint is recognised by the names of its tensors, the first of `FORMATS` that knows them reads it, and the books are checked here once
more: each tensor of the file has exactly one fate, each tensor of the model a source or an initial value, and all shapes agree.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kawara import models
from kawara.errors import ConfigError, ModelFileError
from kawara.models.interface import ImageModel
from kawara.weights import convnets, google, huggingface, timm, torchvision
from kawara.weights.checkpoint import read_checkpoint
from kawara.weights.foreign import Fate, Foreign, Format, Hints, RawCheckpoint
from kawara.weights.model_file import ModelCard, is_model_file, load_model

FORMATS: tuple[Format, ...] = (timm.FORMAT, google.FORMAT, huggingface.FORMAT, torchvision.FORMAT, *convnets.FORMATS)
"""In the order in which they are asked whether they recognise a checkpoint."""

_OTHER_FAMILIES = (
    (r"relative_position_bias_table", "Swin or BEiT"),
    (r"(^|\.)text_model\.|transformer\.resblocks\.|logit_scale$", "CLIP or SigLIP with a text tower"),
    (r"encoder\.layer\.\d+\.attention\.self\.", "BERT or BEiT"),
    (r"(^|\.)h\.\d+\.attn\.c_attn|\.self_attn\.q_proj|\.input_layernorm\.", "a language model"),
    (r"(^|\.)(down|up)_blocks\.\d+|model\.diffusion_model", "a diffusion model"),
    (r"(^|\.)patch_embed\d?\..*|attn_block|window_attention", "another vision transformer"),
    (r"running_mean$", "a convolutional network of another family"),
)
"""What tensors of families are called that no format reads, for the message; the first that is found."""


@dataclass(frozen=True)
class Imported:
    """A checkpoint of others as a model of kawara."""

    model: ImageModel
    """In evaluation mode, on the CPU."""
    card: ModelCard
    foreign: Foreign
    """What became of each tensor, and what had to be assumed."""


def import_checkpoint(path: str | Path, hints: Hints | None = None) -> Imported:
    """Build the model of a checkpoint that others wrote (or kawara itself): a file or a folder.

    Raises ModelFileError where the file cannot be read or holds what cannot be explained, ConfigError for hints that do not fit.
    """
    raw = read_checkpoint(path)
    if (own := _own_file(path)) is not None:
        model, card = load_model(own)
        assert isinstance(model, ImageModel)
        fates = [Fate("used", name, name, "as it is") for name in raw.tensors]
        state = dict(model.state_dict())
        return Imported(model, card, Foreign("kawara", card.name, card.config, state, fates, card.preprocessing, card.class_names))
    layout = next((layout for layout in FORMATS if layout.recognises(raw)), None)
    if layout is None:
        raise _unknown_layout(raw)
    try:
        foreign = layout.read(raw, hints or Hints())
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # shapes that nobody writes
        reason = f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{raw.path} looks like {layout.name}, but its tensors do not go together.", got=reason) from error
    foreign.notes.extend(raw.notes)
    model = _build(foreign)
    _check_books(raw, foreign, set(model.state_dict()))
    card = ModelCard(
        name=foreign.name,
        config=foreign.config,
        class_names=foreign.class_names,
        preprocessing=foreign.preprocessing,
        data={"source": {"format": foreign.format, "name": Path(raw.path).name, "sha256": _sha256(raw.files)}},
    )
    return Imported(model, card, foreign)


def open_model(
    source: str | Path, *, hints: Hints | None = None, device: torch.device | str = "cpu"
) -> tuple[ImageModel, ModelCard, Foreign | None]:
    """Open a kawara model file, a checkpoint of others (file or folder), or `hub:owner/name`; the model comes in evaluation mode.

    The third is what became of the tensors of a checkpoint, None for kawara's own files, which need no hints. Raises ModelFileError.
    """
    if isinstance(source, str) and source.startswith("hub:"):
        from kawara.weights.hub import fetch

        source = fetch(source)
    if (own := _own_file(source)) is not None:
        model, card = load_model(own, device)
        assert isinstance(model, ImageModel)
        return model, card, None
    imported = import_checkpoint(source, hints)
    return imported.model.to(device), imported.card, imported.foreign


def create_model(
    name: str | None = None,
    *,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    **overrides: Any,
) -> ImageModel:
    """Make a model by name, freshly initialised, or from a checkpoint.

    Args:
        name: see `kawara models`. With `pretrained` it may be left out.
        pretrained: whatever `open_model` opens.
        num_classes: 1000 from scratch. With `pretrained`, None keeps the head; a number gives a new, zero-initialised one; 0 none.
        image_size: side or (height, width) in px; None keeps that of the name or checkpoint. Positions are resized, the patch stays.
        channels, overrides: of a model from scratch: fields of its configuration.

    Raises:
        UnknownNameError: a model or option that does not exist.
        ConfigError: values that do not go together.
        ModelFileError: a checkpoint that cannot be read.
    """
    if pretrained is None:
        if name is None:
            raise ConfigError("A model needs a name.", remedy='create_model("vit_tiny_16"), or pretrained=')
        classes = 1000 if num_classes is None else num_classes
        return models.create_model(name, num_classes=classes, image_size=image_size, channels=channels, **overrides)
    model, card, _ = open_model(pretrained)
    if name not in (None, card.name) or overrides:
        asked = ", ".join(map(str, ([] if name in (None, card.name) else [name]) + sorted(overrides)))
        raise ConfigError("A pretrained model has its architecture.", got=asked, allowed=card.name)
    if num_classes is not None:
        model.reset_head(num_classes)
    if image_size is not None:
        model.set_image_size((image_size, image_size) if isinstance(image_size, int) else image_size)
    return model


def _own_file(path: str | Path) -> Path | None:
    """Return the model file of kawara at a path, which may be the folder of a run; None where there is none."""
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    return path if is_model_file(path) else None


def _build(foreign: Foreign) -> ImageModel:
    """Build the model and give it the state; what that lacks, and is accounted for as missing, is initialised."""
    missing = {fate.target for fate in foreign.fates if fate.what == "missing"} - set(foreign.state)
    if missing:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.build(foreign.config)
    else:
        with torch.device("meta"):
            model = models.build(foreign.config)
    expected = model.state_dict()
    state = {name: tensor for name, tensor in expected.items() if name in missing} | foreign.state
    shapes = [(name, tuple(state[name].shape), tuple(tensor.shape)) for name, tensor in expected.items() if name in state]
    wrong = [f"{name} is {found}, not {wanted}" for name, found, wanted in shapes if found != wanted]
    wrong += [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    if wrong:
        raise ModelFileError("The weights do not fit the architecture that they were taken for.", got=_listed(wrong))
    model.load_state_dict(state, assign=True)
    return model.eval()


def _check_books(raw: RawCheckpoint, foreign: Foreign, targets: set[str]) -> None:
    """Raise ModelFileError unless each tensor of the file has one fate, and each of the model a source or an initial value."""
    sources = Counter(fate.source for fate in foreign.fates if fate.source is not None)
    slices = {source: re.sub(r"\[\d+\]$", "", source) for source in sources}  # of a tensor that holds several
    known = {source if source in raw.tensors else slices[source] for source in sources}
    twice = [source for source, count in sources.items() if count > 1]
    lost = [name for name in raw.tensors if name not in known]
    invented = sorted(known - set(raw.tensors))
    reached = {fate.target for fate in foreign.fates if fate.what != "dropped"}
    for wrong, what in (
        (lost, "holds tensors that kawara cannot explain, so it may be another kind of model"),
        (twice + invented, "has been read wrongly: these tensors were counted twice or are not in it"),
        (sorted(map(str, reached ^ targets)), "has been read wrongly: the model does not get what it needs"),
    ):
        if wrong:
            raise ModelFileError(f"{raw.path} {what}.", got=_listed(wrong))


def _unknown_layout(raw: RawCheckpoint) -> ModelFileError:
    for pattern, family in _OTHER_FAMILIES:
        if found := next((name for name in raw.tensors if re.search(pattern, name)), None):
            what = f"{raw.path} is not a model that kawara can read. By its tensors it looks like {family} ({found})."
            break
    else:
        what = f"{raw.path} has a layout that kawara does not know."
    return ModelFileError(
        what, got=f"tensors {_listed(list(raw.tensors))}", allowed=", ".join(dict.fromkeys(layout.name for layout in FORMATS))
    )


def _sha256(files: tuple[Path, ...]) -> str:
    """Return the SHA-256 of a file; of several, that of their digests in turn."""
    digests = []
    for path in files:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    return digests[0].hexdigest() if len(digests) == 1 else hashlib.sha256(b"".join(each.digest() for each in digests)).hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
