"""When a run learns nothing, and when nothing will come of it.

The doctor looks at a run at the end of epochs 1, 2, 3, 4, 6, 8, 12, 16, 24, … (`is_due`), so that a long run is looked at often at its
beginning and rarely later, and few looks mean few chances to err. What is judged is a list of looks, all of them in the journal: a resumed
run, which reads the same journal, is judged as one that was never interrupted.

**At chance** (`Look.at_chance`) needs all of this, because a slow start can hide in any one of them:

1. the loss of the epoch is not below 98 % of that of the best constant answer, `Chance.loss`. With heavy Mixup and smoothing
   accuracies in training say little, but every model that learns brings the loss below that of a constant answer;
2. so many right answers in training have a probability above 1/1000 by chance. Thousands of images show a little even if augmented hard;
3. the same on validation images, which are clean: with strong augmentation this is where learning is seen first;
4. the exact 99 % upper bound of the validation accuracy is below that of the largest class plus a quarter of what is left to 1.
   That nothing was *seen* is no proof: with 8 validation images of 6 classes this never holds, and such a run is never stopped.

**Next to chance** needs 1 and 4 alone: brightness or a colour was picked up, say, and no more.

**Hopeless** is one of two things:

- `rate`: next to chance in two looks running, after at least two epochs, at a rate that is at this moment at least 5 times what this
  optimiser usually takes for the batch and the width (`recipes/rates.py`). In a warm-up the rate of the moment counts, not the one to
  come. The length of a step of AdamW and of Muon does not depend on the gradient, so at such a rate weights are thrown about, however
  small the gradient. No recipe comes near that, so only a rate that was asked for is ever stopped for this. Whether the run had learned
  before does not matter.
- `stuck`: at chance in every look, half of the run is over, at least 10 epochs and 1,000 steps of it after the warm-up, and in the second
  half of those steps the loss fell by less than 1 %. A warm-up, a short run, a few steps an epoch, or a loss still on its way down: none of
  them is stopped. One look that is not at chance clears a run for good.

What may be hopeless is said, not stopped: at chance 5 epochs and 300 steps after the warm-up (`slow`), or back at chance at a usual rate
(`collapsed`).

A run whose rate is far too high may still learn something when the rate has fallen at its end; it is stopped because the time until then is
lost (`docs/lab-log.md`, "Rates that are too high").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kawara.training.chance import Chance, chance_of_as_many, highest_accuracy

Kind = Literal["rate", "stuck", "slow", "collapsed"]

SIGNIFICANCE = 1e-3
LOSS_SHARE = 0.98
ROOM = 0.25
FAR_ABOVE = 5.0
SLOW_EPOCHS, SLOW_STEPS = 5, 300
STUCK_EPOCHS, STUCK_STEPS, STUCK_PROGRESS, STUCK_FALL = 10, 1000, 0.5, 0.01


@dataclass(frozen=True)
class Look:
    """What was seen at the end of an epoch. Counts are of independent images; `loss` is the mean over the epoch, None if unknown."""

    step: int
    epoch: int
    progress: float
    """Share of the run done, in [0, 1]."""
    loss: float | None
    training_right: int
    training_images: int
    validation_right: int
    validation_images: int
    rate: float
    """The learning rate now, as a multiple of the usual one."""
    steps_since_warmup: int
    """0 in the warm-up."""

    def next_to_chance(self, chance: Chance) -> bool:
        """Whether next to nothing was learned: points 1 and 4 above."""
        low = chance.largest_in_validation + ROOM * (1 - chance.largest_in_validation)
        loss_is_high = self.loss is None or self.loss >= LOSS_SHARE * chance.loss
        return loss_is_high and highest_accuracy(self.validation_right, self.validation_images) < low

    def at_chance(self, chance: Chance) -> bool:
        """Whether nothing was learned, as far as this look can tell: points 1 to 4 above."""
        likely = chance_of_as_many(self.training_right, self.training_images, chance.largest_in_training)
        likely_in_validation = chance_of_as_many(self.validation_right, self.validation_images, chance.largest_in_validation)
        return self.next_to_chance(chance) and min(likely, likely_in_validation) > SIGNIFICANCE


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a run, and whether it is `hopeless` or only worth a word."""

    kind: Kind
    hopeless: bool


def is_due(epoch: int) -> bool:
    """Whether the doctor looks at the end of this epoch, counted from 1: powers of two, and half as much again."""
    while epoch > 3 and epoch % 2 == 0:
        epoch //= 2
    return epoch in (1, 2, 3)


def judge(looks: Sequence[Look], chance: Chance, steps_per_epoch: int) -> Verdict | None:
    """Judge a run by all its looks so far, in order; None where there is nothing to say."""
    if len(looks) < 2:
        return None
    now, before = looks[-1], looks[-2]
    if not (now.next_to_chance(chance) and before.next_to_chance(chance)):
        return None
    if now.epoch >= 2 and now.rate >= FAR_ABOVE:
        return Verdict("rate", hopeless=True)
    if not (now.at_chance(chance) and before.at_chance(chance)):
        return None
    if not all(look.at_chance(chance) for look in looks):
        return Verdict("collapsed", hopeless=False)
    epochs_since_warmup = now.steps_since_warmup / max(steps_per_epoch, 1)
    if (
        now.progress >= STUCK_PROGRESS
        and now.steps_since_warmup >= STUCK_STEPS
        and epochs_since_warmup >= STUCK_EPOCHS
        and not _still_falling(looks)
    ):
        return Verdict("stuck", hopeless=True)
    if now.steps_since_warmup >= SLOW_STEPS and epochs_since_warmup >= SLOW_EPOCHS:
        return Verdict("slow", hopeless=False)
    return None


def _still_falling(looks: Sequence[Look]) -> bool:
    """Whether the loss fell by more than 1 % since the last look that lies in the first half of the steps after the warm-up."""
    now = looks[-1]
    earlier = [look for look in looks if look.steps_since_warmup <= now.steps_since_warmup / 2]
    if not earlier or now.loss is None or earlier[-1].loss is None:
        return False
    return now.loss < (1 - STUCK_FALL) * earlier[-1].loss
