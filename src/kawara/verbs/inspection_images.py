"""Which images an inspection looks at: files without labels, or the part of a data set that the model did not learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kawara.data.arrays import is_idx_file
from kawara.data.decode import decode
from kawara.data.listing import Listing, SkippedFile
from kawara.data.manifest import SUFFIXES as TABLE_SUFFIXES
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit, load_data, open_data
from kawara.errors import DataError, DecodeError
from kawara.predict import expand
from kawara.training.progress import Reporter
from kawara.verbs.evaluation import load_images, was_trained_on
from kawara.weights import ModelCard


@dataclass(frozen=True)
class ImageSet:
    """The same n images as every model wants them."""

    placed: tuple[Tensor, ...]
    """For each model (n, C, h, w) uint8."""
    keys: list[str]
    labels: Tensor | None
    """(n,) int64, classes of the first model."""
    part: str | None
    """"test", "val", "train" or "all" of a labelled data set."""
    num_found: int
    skipped: list[SkippedFile]

    def __len__(self) -> int:
        return len(self.keys)


def gather(sources: Sequence[str], cards: Sequence[ModelCard], max_images: int, reporter: Reporter) -> ImageSet:
    """Read at most `max_images`, spread evenly over what is there, for the models of these cards.

    A data set whose classes the first model knows comes with labels: its test part, else val, else all; of images that the model was
    trained on only those that were held out. Anything else comes without.

    Raises DataError where there is no image that can be read.
    """
    listing = _listing(sources)
    if listing is None:
        return _from_files(expand(sources), cards, max_images, reporter)
    if not _knows_classes(cards[0], listing):
        reporter.say(f"{cards[0].name} does not know the classes of {listing.spec}: the images are used without labels.")
        return _from_data(listing, cards, max_images, reporter, labelled=False)
    return _from_data(listing, cards, max_images, reporter, labelled=True)


def _listing(sources: Sequence[str]) -> Listing | None:
    """Return the data set that the user means, None for plain image files."""
    if len(sources) != 1:
        return None
    path = Path(sources[0]).expanduser()
    is_container = path.suffix.lower() in (".zip", ".npz", *TABLE_SUFFIXES) or is_idx_file(path.name)
    if sources[0].startswith("hf:") or (sources[0] == "digits" and not path.exists()) or (path.is_file() and is_container):
        return open_data(sources[0])
    if not path.is_dir():
        return None
    try:
        return open_data(path)
    except DataError:
        return None  # images that lie there without classes


def _knows_classes(card: ModelCard, listing: Listing) -> bool:
    known = set(card.class_names)
    return any(set(names) <= known for names in (listing.class_names, listing.class_keys))


def _from_files(files: list[str], cards: Sequence[ModelCard], max_images: int, reporter: Reporter) -> ImageSet:
    placed: list[list[Tensor]] = [[] for _ in cards]
    keys, skipped = [], []
    chosen = [files[index] for index in _spread(len(files), max_images)]
    for number, file in enumerate(chosen, start=1):
        try:
            content = Path(file).read_bytes()
            versions = [_placed(content, file, card.preprocessing) for card in cards]
        except DecodeError as error:
            skipped.append(SkippedFile(file, error.reason))
        except OSError as error:
            skipped.append(SkippedFile(file, error.strerror or str(error)))
        else:
            keys.append(file)
            for into, version in zip(placed, versions):
                into.append(version)
        reporter.progress("reading images", number / len(chosen))
    if not keys:
        raise DataError("None of the images can be read.", got=f"{len(skipped)} files; {skipped[0].path}: {skipped[0].reason}")
    return ImageSet(tuple(torch.stack(each) for each in placed), keys, None, None, len(files), skipped)


def _placed(content: bytes, name: str, preprocessing: Preprocessing) -> Tensor:
    return preprocessing.place(decode(content, name, color=preprocessing.color, min_side=preprocessing.stored_side))


def _from_data(listing: Listing, cards: Sequence[ModelCard], max_images: int, reporter: Reporter, *, labelled: bool) -> ImageSet:
    num_found = listing.num_images
    trained = labelled and bool(cards[0].data.get("training_sample"))
    named = set(listing.split_names)
    if named or not trained:  # otherwise every image is wanted, to find those that were held out
        listing = _narrowed(listing, max_images)
    splits = [_split(listing, card, cards[0], reporter, labelled) for card in cards]
    keys = splits[0][0].keys
    if any(split.keys != keys for split, _ in splits):
        raise DataError("Some images can be read for one model only.", got=listing.spec)
    chosen = _spread(len(keys), max_images)
    placed = tuple(
        torch.stack([card.preprocessing.place(split.store[index]) for index in chosen]) for card, (split, _) in zip(cards, splits)
    )
    labels = torch.from_numpy(splits[0][0].labels[chosen]).long() if labelled else None
    return ImageSet(placed, [keys[index] for index in chosen], labels, splits[0][0].name, num_found, splits[0][1])


def _split(listing: Listing, card: ModelCard, first: ModelCard, reporter: Reporter, labelled: bool) -> tuple[ImageSplit, list[SkippedFile]]:
    """Return the part to look at, read for the model of `card` but with the classes and the held-out images of the first one."""
    if not labelled:
        images = load_data(listing, card.preprocessing, hold_out=False, progress=reporter.progress_of("reading images"))
        return images.splits[images.reported], images.skipped
    read_as = dataclasses.replace(first, preprocessing=card.preprocessing)
    images = load_images(listing, read_as, reporter, hold_out=False)
    if not {"val", "test"} & set(images.splits) and was_trained_on(images.splits.values(), first):
        reporter.say("The model was trained on some of these images; only the part that was held out is looked at.")
        images = load_images(listing, read_as, reporter, hold_out=True)
    return images.splits[images.reported], images.skipped


def _narrowed(listing: Listing, max_images: int) -> Listing:
    """Return a listing of files without what would not be looked at: reading all of a large data set takes minutes."""
    if not listing.records:
        return listing
    wanted = next((name for name in ("test", "val", "train") if name in listing.split_names), None)
    records = [record for record in listing.records if record.split == wanted] or listing.records
    return dataclasses.replace(listing, records=[records[index] for index in _spread(len(records), max_images)])


def _spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` numbers of 0 … count − 1, evenly spread."""
    return list(range(count)) if count <= wanted else np.linspace(0, count - 1, wanted).round().astype(int).tolist()
