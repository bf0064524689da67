"""preprocessor_config.json, read and written: how the images of a transformers model are brought to its input.

What transformers does, in this order: resize (to a height and width without keeping the aspect ratio, or the shorter side to a number), cut
the centre (zeros are added where the image is smaller), multiply by `rescale_factor`, subtract `image_mean`, divide by `image_std`.
What a file leaves open is filled in from the published files of the family.

Source: transformers 5.23 `image_processing_backends.py`; version 4 and its feature extractors write one number where 5 writes a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, nextafter
from typing import Any

from kawara.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from kawara.errors import ConfigError, ModelFileError
from kawara.weights.foreign import Normalisation

_SQUASH = Preprocessing(resize="squash", crop_fraction=1.0, interpolation="bilinear", mean=HALF, std=HALF)
_CROP = Preprocessing(resize="crop", crop_fraction=0.875, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)

PUBLISHED = {
    "vit": _SQUASH,
    "deit": _CROP,
    "vit_mae": replace(_SQUASH, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "vit_msn": replace(_SQUASH, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "dinov2": _CROP,
    "dinov2_with_registers": _CROP,
}
"""What the published checkpoints of a family say, for 224 px."""

_RESAMPLE: dict[Any, Interpolation] = {2: "bilinear", 3: "bicubic"}  # the numbers of Pillow
_SHORTER_SIDE = ("Bit", "CLIP")
"""Processors for which one number is the length of the shorter side; for the others it is height and width."""


@dataclass(frozen=True)
class _Size:
    """Where a resize leads: (height, width), or the shorter side where `shorter` is not None."""

    exact: tuple[int, int] | None = None
    shorter: int | None = None


def read_preprocessing(
    values: Mapping[str, Any], family: str, image_size: tuple[int, int], channels: int, normalisation: Normalisation | None, path: str
) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing of a checkpoint and what had to be assumed.

    `image_size` is the model's own (H, W), for files that name none. Raises ModelFileError for a file that makes no sense.
    """
    published = PUBLISHED[family]
    notes: list[str] = []
    if values:
        geometry = _geometry(values, published, image_size, notes, path)
    else:
        # DINOv2 was trained at 518 px last, and is published with 224.
        size = (224, 224) if image_size == (518, 518) else image_size
        geometry = replace(published, image_size=size)
        notes.append(
            f"There is no preprocessor_config.json beside the weights: the published preprocessing of {family} is assumed "
            f"({geometry.resize}, {geometry.interpolation}, mean {geometry.mean[0]:g} …)."
        )
    mean, std = _normalisation(values, published, path)
    if normalisation is not None:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalisation == "imagenet" else (HALF, HALF)
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    try:
        return replace(geometry, color="grey" if channels == 1 else "rgb", mean=mean, std=std), notes
    except ConfigError as error:
        raise ModelFileError(f"The preprocessor_config.json of {path} makes no sense.", got=error.what) from None


def _geometry(
    values: Mapping[str, Any], published: Preprocessing, image_size: tuple[int, int], notes: list[str], path: str
) -> Preprocessing:
    name = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    resample = values.get("resample", {"bilinear": 2, "bicubic": 3}[published.interpolation])
    interpolation = _RESAMPLE.get(resample) if isinstance(resample, int) else None
    if interpolation is None:
        interpolation = published.interpolation
        notes.append(
            f"preprocessor_config.json asks for resampling method {resample}, which kawara does not have: {interpolation} is used."
        )
    if not values.get("do_resize", True):
        notes.append("preprocessor_config.json asks for no resize, and kawara needs images of one size: they are brought to the model's.")
        return Preprocessing(image_size, resize="squash", crop_fraction=1.0, interpolation=interpolation)
    size = _size(values, "size", path, shorter=name.startswith(_SHORTER_SIDE)) or _Size(exact=image_size)
    crop = _size(values, "crop_size", path, shorter=False)
    if not values.get("do_center_crop", crop is not None) or crop is None or crop.exact is None:
        if size.exact is not None:
            return Preprocessing(size.exact, resize="squash", crop_fraction=1.0, interpolation=interpolation)
        assert size.shorter is not None
        notes.append(
            f"preprocessor_config.json asks for no crop after the shorter side is {size.shorter} px: kawara cuts the centre square."
        )
        return Preprocessing((size.shorter, size.shorter), resize="crop", crop_fraction=1.0, interpolation=interpolation)
    if size.exact == crop.exact:
        return Preprocessing(crop.exact, resize="squash", crop_fraction=1.0, interpolation=interpolation)
    if size.exact is not None:
        notes.append(
            f"transformers squashes images to {size.exact[0]}×{size.exact[1]} before it cuts {crop.exact[0]}×{crop.exact[1]}; "
            "kawara keeps their aspect ratio, as the authors of DeiT do."
        )
    box = min(size.exact) if size.exact is not None else size.shorter
    assert box is not None
    if crop.exact[0] != crop.exact[1] or box < max(crop.exact):
        notes.append(f"kawara covers {crop.exact[0]}×{crop.exact[1]} with the image, where transformers may pad it or cut it otherwise.")
    return Preprocessing(crop.exact, resize="crop", crop_fraction=_crop_fraction(min(crop.exact), box), interpolation=interpolation)


def _crop_fraction(crop: int, box: int) -> float:
    """Return a fraction f ≤ 1 with floor(crop / f) = box."""
    if box <= crop:
        return 1.0
    fraction = crop / box
    return fraction if floor(crop / fraction) == box else nextafter(fraction, 0)


def _size(values: Mapping[str, Any], name: str, path: str, *, shorter: bool) -> _Size | None:
    """Read one number, [height, width], {"height", "width"} or {"shortest_edge"}."""
    size = values.get(name)
    if size is None:
        return None
    if _is_length(size):
        return _Size(shorter=size) if shorter else _Size(exact=(size, size))
    if isinstance(size, list) and len(size) == 2 and all(map(_is_length, size)):
        return _Size(exact=(size[0], size[1]))
    if isinstance(size, Mapping):
        if _is_length(size.get("height")) and _is_length(size.get("width")):
            return _Size(exact=(size["height"], size["width"]))
        if _is_length(size.get("shortest_edge")):
            return _Size(shorter=size["shortest_edge"])
    raise ModelFileError(
        f"The preprocessor_config.json of {path} has a {name} that is not understood.",
        got=size,
        allowed='a number, {"height", "width"} or {"shortest_edge"}',
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000


def _normalisation(values: Mapping[str, Any], published: Preprocessing, path: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std on the scale 0 to 1."""
    if not values.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = (
            _numbers(values.get(name), default, name, path)
            for name, default in (("image_mean", published.mean), ("image_std", published.std))
        )
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    (factor,) = _numbers([factor], (), "rescale_factor", path)
    if factor <= 0:
        raise ModelFileError(f"The rescale_factor in the preprocessor_config.json of {path} is not positive.", got=factor)
    # (factor·x − mean) / std is (x/255 − mean/s) / (std/s) with s = 255·factor.
    scale = 1.0 if factor == 1 / 255 else 255 * factor
    return tuple(number / scale for number in mean), tuple(number / scale for number in std)


def _numbers(values: Any, default: tuple[float, ...], name: str, path: str) -> tuple[float, ...]:
    if values is None:
        return default
    if isinstance(values, list) and len(values) in (1, 3) and all(isinstance(value, int | float) and abs(value) <= 1e9 for value in values):
        return tuple(float(value) for value in values)
    raise ModelFileError(f"The preprocessor_config.json of {path} has an {name} that is not understood.", got=values)


def write_preprocessing(preprocessing: Preprocessing) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a preprocessor_config.json, and in what transformers will differ."""
    height, width = preprocessing.image_size
    crops = preprocessing.resize == "crop"
    box: dict[str, int] = {"height": height, "width": width}
    notes = []
    if preprocessing.color == "grey":
        notes.append("transformers does not turn pictures grey: it has to be given grey ones, which version 4 does not take.")
    if crops:
        box = {"shortest_edge": preprocessing.stored_side}
        if height != width:
            notes.append(
                f"transformers brings the shorter side to {preprocessing.stored_side} px; kawara covers {height}×{width} more tightly."
            )
    return {
        "image_processor_type": "BitImageProcessor" if crops else "ViTImageProcessor",
        "do_convert_rgb": preprocessing.color == "rgb",
        "do_resize": True,
        "size": box,
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocessing.interpolation),
        "do_center_crop": crops,
        **({"crop_size": {"height": height, "width": width}} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }, notes
