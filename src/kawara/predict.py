"""image → answer: everything that is needed is in the model file."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from kawara.data.decode import decode, to_color
from kawara.errors import ConfigError, DataError, DecodeError
from kawara.layers.merging import EVERY
from kawara.models import ImageModel
from kawara.runtime import autocast_dtype, choose_device
from kawara.weights import ModelCard, open_model

if TYPE_CHECKING:
    from kawara.data.sources import ImageSplit
    from kawara.edge.running import Session

ImageLike = str | Path | bytes | Image.Image | np.ndarray

_LARGE = 2**24


@dataclass(frozen=True)
class Guess:
    """One class and its probability in [0, 1]."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction(Guess):
    """The likeliest class of an image, and the likeliest few, best first."""

    top: tuple[Guess, ...]
    path: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        guesses = [{"label": guess.label, "index": guess.index, "score": guess.score} for guess in self.top]
        return {"path": self.path, "label": self.label, "index": self.index, "score": self.score, "top": guesses}


class Predictor:
    """A trained model with its class names and its preprocessing.

    `.model` takes normalised images (B, C, H, W) and gives logits (B, K).
    """

    def __init__(self, model: nn.Module, card: ModelCard, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.card = card

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.card.class_names

    def require_classes(self) -> None:
        """Raise ConfigError unless the model names classes: a backbone without a head does not."""
        if not self.card.class_names:
            num_classes = self.card.config.num_classes
            raise ConfigError(
                f"The model {self.card.name} names no classes.",
                got=f"a head of {num_classes} classes without names" if num_classes else "a backbone without a head",
                remedy="kawara evaluate MODEL DATA --protocol knn, which measures a backbone on the classes of the data",
            )

    def with_merging(self, r: int) -> Predictor:
        """Return a copy that merges 2r tokens in every second block, and says so in its card; weights are shared.

        Raises ConfigError for a CNN.
        """
        if not isinstance(self.model, ImageModel):
            raise ConfigError("An exported file merges what it was exported to merge.", got=r, remedy="the model file")
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, shared)
        model.set_merging(r, every=EVERY if r else 1)
        return Predictor(model, dataclasses.replace(self.card, config=model.config), self.device)

    def predict(self, images: ImageLike | Sequence[ImageLike], *, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Return one prediction for every image, in order.

        Args:
            images: one or many of: path, encoded bytes, PIL image, array (H, W) or (H, W, C) of uint8, or of floats in [0, 1].
            top: how many classes to list.

        Raises:
            DecodeError: an image cannot be read; the message names it.
            ConfigError: the model names no classes.
        """
        self.require_classes()
        single = isinstance(images, str | Path | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim <= 3)
        several: Sequence[Any] = [images] if single else images  # type: ignore[assignment]
        predictions: list[Prediction] = []
        for start in range(0, len(several), batch_size):
            chunk = several[start : start + batch_size]
            names = [str(image) if isinstance(image, str | Path) else None for image in chunk]
            predictions += self._answers(self._probabilities_of([self._pixels(image) for image in chunk]), names, top)
        return predictions

    @torch.inference_mode()
    def probabilities(self, images_u8: torch.Tensor) -> torch.Tensor:
        """Return probabilities (B, K) for uint8 images (B, C, h, w) of the size that the model was trained at."""
        image = self.card.preprocessing.normalise(images_u8, self.device)
        dtype = autocast_dtype("auto", self.device)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.model(image)
        return logits.float().softmax(dim=-1).cpu()

    def _probabilities_of(self, images_u8: list[np.ndarray]) -> torch.Tensor:
        """Return probabilities (n, K) for upright images (H, W, C) of any size."""
        return self.probabilities(torch.stack([self.card.preprocessing.place(image) for image in images_u8]))

    def _pixels(self, image: ImageLike) -> np.ndarray:
        """Return upright uint8 pixels (H, W, C) in the colour mode of the model."""
        color = self.card.preprocessing.color
        if isinstance(image, str | Path):
            try:
                content = Path(image).read_bytes()
            except OSError as error:
                raise DecodeError(str(image), error.strerror or str(error)) from None
            return decode(content, str(image), color=color, min_side=self.card.preprocessing.stored_side)
        if isinstance(image, bytes):
            return decode(image, "bytes", color=color, min_side=self.card.preprocessing.stored_side)
        if isinstance(image, Image.Image):
            return to_color(ImageOps.exif_transpose(image), color)
        return to_color(_array_image(image), color)

    def _answers(self, probabilities: torch.Tensor, names: list[str | None], top: int) -> list[Prediction]:
        scores, indices = probabilities.topk(min(top, probabilities.shape[1]), dim=-1)
        answers = []
        for name, row_scores, row_indices in zip(names, scores.tolist(), indices.tolist()):
            guesses = tuple(Guess(self.class_names[index], index, score) for score, index in zip(row_scores, row_indices))
            answers.append(Prediction(guesses[0].label, guesses[0].index, guesses[0].score, guesses, name))
        return answers


class ExportedPredictor(Predictor):
    """A file of `kawara export` in its own run time, which does all from the raw pixels on; `.model` cannot be called."""

    def __init__(self, session: Session, card: ModelCard):
        super().__init__(nn.Identity(), card)
        self.session = session

    def probabilities(self, images_u8: torch.Tensor) -> torch.Tensor:
        """Return probabilities (B, K) for uint8 images (B, C, H, W) of any one size."""
        return self._probabilities_of([image.permute(1, 2, 0).contiguous().cpu().numpy() for image in images_u8])

    def classify(self, split: ImageSplit, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, K) and labels (n,) of all images of a split."""
        starts = range(0, len(split), batch_size)
        parts = [self._probabilities_of([split.store[i] for i in range(start, min(start + batch_size, len(split)))]) for start in starts]
        return torch.cat(parts).numpy(), split.labels

    def _probabilities_of(self, images_u8: list[np.ndarray]) -> torch.Tensor:
        from kawara.edge.running import probabilities_of

        # To shrink an image first changes nothing in the answer; the graph would take 5 to 9 bytes of memory for each of its numbers.
        ready = [self.card.preprocessing.shrink(image) if image.size > _LARGE else image for image in images_u8]
        return torch.from_numpy(probabilities_of(self.session, ready))


def load(source: str | Path, *, device: str | None = None) -> Predictor:
    """Load a model file of kawara, a public checkpoint (file or folder), "hub:owner/name", or an exported .onnx or .xml.

    Raises ModelFileError if it cannot be read, ConfigError where the package that runs an exported file is absent.
    """
    if Path(source).suffix in (".onnx", ".xml"):
        from kawara.edge.running import open_exported, refuse_device

        refuse_device(device)
        return ExportedPredictor(*open_exported(source))
    chosen = choose_device(device)
    model, card, _ = open_model(source, device=chosen)
    return Predictor(model, card, chosen)


def _array_image(array: np.ndarray) -> Image.Image:
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError("An array image has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).", got=array.shape)
    if array.dtype.kind == "f":
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError("An array image holds uint8, or floats in [0, 1].", got=array.dtype)
    return Image.fromarray(array)


def expand(patterns: Iterable[str]) -> list[str]:
    """Return the files that paths, folders and globs stand for, sorted inside each. Raises DataError for one that stands for none."""
    import glob

    from kawara.data.sources import IMAGE_SUFFIXES

    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))
        elif path.exists():
            found = [pattern]
        else:
            found = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"{pattern} stands for no image.", remedy="the path of an image, a folder with images, or a glob in quotes")
        files += found
    return files
