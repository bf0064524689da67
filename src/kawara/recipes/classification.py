"""Ways to train a classifier that can be trusted: what to run, what it costs, what to expect."""

from __future__ import annotations

from collections.abc import Callable

from kawara.data.augment import AugmentConfig
from kawara.data.mixing import MixConfig
from kawara.data.sampling import SamplerConfig
from kawara.registry import Registry
from kawara.tasks.classification import ClassificationConfig
from kawara.training.optimizer import OptimizerConfig
from kawara.training.run_config import DataSettings, ModelSettings, RunConfig
from kawara.training.schedule import ScheduleConfig

RECIPES: Registry[Callable[[], RunConfig]] = Registry("recipe")


def small() -> RunConfig:
    """Train from scratch on up to about 100,000 small images; good on a laptop.

    Source:   kawara's own search (docs/lab-log.md): convolutional stem, Muon for matrices, short warm-up, linear to zero.
    Command:  kawara train DATA --recipe small --minutes 5
    Cost:     what you give it; made for 5 to 60 minutes on 2 CPU cores.
    Expect:   Fashion-MNIST, 9,000 test images, 2 cores: see docs/results.md (5 and 15 minutes, median of 3 seeds).
    """
    return RunConfig(
        recipe="small",
        model=ModelSettings(name="vit_pico_conv_8"),
        augment=AugmentConfig(crop="pad", pad_px=1, flip=0.5),
        task=ClassificationConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(name="muon", lr=3e-3, muon_lr=0.02, weight_decay=0.0, betas=(0.9, 0.99), muon_momentum=0.95),
        schedule=ScheduleConfig(kind="linear", warmup="3%"),
        length="30 epochs",
        batch_size=128,
    )


def deit() -> RunConfig:
    """Train as DeiT does: strong augmentation instead of more data.

    Source:   DeiT, 2012.12877, Table 9, with the values of the authors' code where the table is silent.
    Command:  kawara train IMAGENET --recipe deit --model vit_small_16 --image-size 224
    Cost:     300 epochs; two to three days on one node of 8 GPUs for ImageNet-1k (the paper, section 1).
    Expect:   ImageNet-1k top-1 (published): Ti 72.2 %, S 79.9 %, B 81.8 %. Not run by kawara at that scale.
    Differs:  the rate changes at every step instead of every epoch; the average of weights starts with a shorter memory.
    """
    batch_size, peak = 1024, 5e-4 * 1024 / 512
    return RunConfig(
        recipe="deit",
        model=ModelSettings(name="vit_small_16", stochastic_depth=0.1),
        data=DataSettings(image_size=224, color="rgb", crop_fraction=0.875),
        sampler=SamplerConfig(repeats=3),
        augment=AugmentConfig(crop="random_resized", flip=0.5, rand_augment="m9-mstd0.5-inc1", erasing=0.25),
        task=ClassificationConfig(label_smoothing=0.1, mix=MixConfig(mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5)),
        optimizer=OptimizerConfig(name="adamw", lr=5e-4, lr_batch=512, weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup="5 epochs", final=1e-5 / peak, anneal_from_start=True),
        length="300 epochs",
        batch_size=batch_size,
        average_decay=0.99996,
    )


def plain() -> RunConfig:
    """Train a plain ViT-S/16 well with little machinery.

    Source:   "Better plain ViT baselines for ImageNet-1k", 2205.01580, and big_vision's vit_s16_i1k configuration.
    Command:  kawara train IMAGENET --recipe plain --image-size 224
    Cost:     90 epochs; 6 h 30 min on a TPUv3-8 (the paper's figure 1).
    Expect:   ImageNet-1k top-1 (published): 76.5 % after 90 epochs, 80.0 % after 300. Not run by kawara at that scale.
    Differs:  weight decay 1e-4 there is not multiplied by the learning rate; 0.1 here is (0.1 · 1e-3 = 1e-4).
    """
    return RunConfig(
        recipe="plain",
        model=ModelSettings(name="vit_small_16", options={"pool": "mean", "class_token": False, "position": "sincos"}),
        data=DataSettings(image_size=224, color="rgb", crop_fraction=0.875),
        augment=AugmentConfig(crop="random_resized", crop_scale=(0.05, 1.0), flip=0.5, rand_augment="m10-n2-p1-inc1"),
        task=ClassificationConfig(mix=MixConfig(mixup=0.2)),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup="10000 steps"),
        length="90 epochs",
        batch_size=1024,
    )


def finetune() -> RunConfig:
    """Fine-tune a pretrained model on 200 to 20,000 images of your own.

    Source:   MAE's and BEiT's way to fine-tune (2111.06377, table 9): AdamW, learning rates that fall layer by layer towards the input,
              warm-up, cosine, stochastic depth, label smoothing. Runs are short, so crops are gentle, the backbone moves little
              and the weights are averaged (docs/lab-log.md).
    Command:  kawara train DATA --pretrained FILE
    Cost:     8 showings of each image where they are few, 5 where they are many; time and accuracy on 195 photos: docs/results.md.
    Expect:   195 photos of ants and bees, DeiT-Ti: see docs/results.md.
    """
    return RunConfig(
        recipe="finetune",
        model=ModelSettings(name="vit_tiny_16", stochastic_depth=0.1),
        augment=AugmentConfig(crop="random_resized", crop_scale=(0.5, 1.0), flip=0.5),
        task=ClassificationConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75, backbone_rate=0.02, clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup="10%"),
        length="8 epochs",
        batch_size=16,
        average_decay=0.98,
    )


def head() -> RunConfig:
    """Train only a new head on the features of a pretrained model: every image goes through the backbone once.

    Source:   linear evaluation as usual: no augmentation, no label smoothing, a zero head, AdamW, cosine.
    Command:  kawara train DATA --pretrained FILE --freeze backbone
    Cost:     one pass over the images, then seconds.
    Expect:   195 photos of ants and bees, and 1,280 of 10 classes, DeiT-Ti: see docs/results.md.
    """
    return RunConfig(
        recipe="head",
        model=ModelSettings(name="vit_tiny_16"),
        augment=AugmentConfig(crop="none", flip=0.0),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup="0%"),
        length="50 epochs",
        batch_size=64,
    )


for _recipe in (small, deit, plain, finetune, head):
    RECIPES.add(_recipe.__name__, _recipe)
