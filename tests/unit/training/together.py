"""What the tests let two processes do together: `python together.py OUT [shard]`, with the variables of a launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kawara.data.augment import Augmentation, AugmentConfig
from kawara.data.loading import EvalLoader, TrainLoader
from kawara.data.mixing import MixConfig
from kawara.data.preprocessing import Preprocessing
from kawara.data.sources import ImageSplit
from kawara.data.stores import TensorStore
from kawara.layers.residual import StochasticDepth
from kawara.models import create_model
from kawara.tasks.classification import Classification, ClassificationConfig
from kawara.training.distributed import World, joined, sharded
from kawara.training.loop import Loop
from kawara.training.optimizer import OptimizerConfig
from kawara.training.progress import Reporter
from kawara.training.run_config import RunConfig
from kawara.training.run_folder import RunFolder
from kawara.training.schedule import ScheduleConfig

PREPROCESSING = Preprocessing(image_size=(8, 8), color="grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
NUM_IMAGES = 150


def split() -> ImageSplit:
    generator = torch.Generator().manual_seed(7)
    images_u8 = torch.randint(0, 256, (NUM_IMAGES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = (images_u8.float().mean(dim=(1, 2, 3)) > 127).long().numpy()
    return ImageSplit(
        "train", TensorStore(images_u8), labels, [f"{i}.png" for i in range(NUM_IMAGES)], np.zeros((NUM_IMAGES, 32), np.uint8)
    )


def train(world: World, folder: Path, *, steps: int = 20, resume: bool = False, **settings: object) -> dict[str, Tensor]:
    """Train with all that looks at the whole batch: Muon, Mixup, CutMix, dropout, stochastic depth, average, clipping."""
    torch.manual_seed(0)
    values = {
        "length": "20 steps", "batch_size": 30, "accumulate": 2, "average_decay": 0.9,
        "optimizer": OptimizerConfig(name="muon", lr=3e-3, muon_lr=0.02, clip_norm=1.0),
        "schedule": ScheduleConfig(kind="linear", warmup="10%"),
    } | settings  # fmt: skip
    config = RunConfig(**values)  # type: ignore[arg-type]
    world = sharded(world, config, torch.device("cpu"))
    augmentation = Augmentation(AugmentConfig(crop="pad", pad_px=1, flip=0.5, erasing=0.3), PREPROCESSING, 0)
    run_folder = RunFolder(folder)
    if world.is_first:
        run_folder.make()
    model = create_model("vit_femto_conv_2", num_classes=2, image_size=8, channels=1, stochastic_depth=0.2, dropout=0.1)
    loader = TrainLoader(split(), augmentation, batch_size=config.batch_size, seed=0, workers=1, share=world.share)
    world.share_model(model, loader.whole_batch)
    evaluation = EvalLoader(split(), PREPROCESSING, batch_size=61, workers=1, share=world.share)

    def validate(candidate: nn.Module) -> dict[str, float]:
        probabilities, labels = world.classify(candidate, evaluation, None)
        right = float((probabilities.argmax(axis=1) == labels).mean())
        return {"top1": right, "nll": float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())}

    task = Classification(ClassificationConfig(label_smoothing=0.1, mix=MixConfig(mixup=0.8, cutmix=1.0)), 2, 0)
    loop = Loop(
        model, task, loader, validate, config, run_folder,
        device=torch.device("cpu"), reporter=Reporter(quiet=True), world=world,
    )  # fmt: skip
    if resume:
        world.wait()
        loop.resume()
    if steps < 20:
        loop.validate = _stop_at(loop, steps, validate)
    state = loop.fit().state
    if world.is_sharded:
        world.load_state(model, state)
        return world.whole_state(model)
    return dict(state)


def _stop_at(loop: Loop, step: int, validate):
    """Validate, and at `step` ask to stop, in the last process only: all must hear of it."""

    def wrapped(candidate: nn.Module) -> dict[str, float]:
        if loop.progress.step >= step and loop.world.rank == loop.world.size - 1:
            loop._stop_requested = True
        return validate(candidate)

    return wrapped


class Net(nn.Module):
    """A net in float64 in which every layer that looks at the batch occurs."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.4)
        self.depth = StochasticDepth(0.3)
        self.head = nn.Linear(3, 4)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.norm(self.conv(image)).tanh()
        return self.head(self.depth(self.drop(hidden)).amax(dim=(2, 3)))


def gradients(world: World, num_images: int = 9) -> dict[str, Tensor]:
    """Return the gradients of one batch and the running statistics, in float64."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(num_images, 2, 5, 5, generator=generator, dtype=torch.float64) + 3
    labels = torch.randint(0, 4, (num_images,), generator=generator)
    net = Net()
    world.share_model(net, num_images)
    rows = torch.from_numpy(world.share.rows(num_images))
    torch.manual_seed(11)
    loss = nn.functional.cross_entropy(net(images[rows]), labels[rows]) * len(rows) / num_images
    loss.backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    if world.size > 1:
        for gradient in found.values():
            torch.distributed.all_reduce(gradient)
    return found | {f"buffer {name}": buffer for name, buffer in net.named_buffers()}


ADAMW = OptimizerConfig(name="adamw", lr=1e-3, clip_norm=1.0)


def main(out: Path, what: str) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        if what == "shard":
            results = {"weights": train(world, out / "run", shard=True, optimizer=ADAMW)}
            train(world, out / "stopped", steps=8, shard=True, optimizer=ADAMW)
        elif what == "resume":
            results = {"weights": train(world, out / "stopped", resume=True, shard=True, optimizer=ADAMW)}
        else:
            results = {"gradients": gradients(world), "weights": train(world, out / "run")}
            train(world, out / "stopped", steps=8)
        if world.is_first:
            torch.save(results, out / f"{what}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
