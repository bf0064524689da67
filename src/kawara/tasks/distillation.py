"""Learn from a teacher: soft, hard, or through a distillation token.

DeiT, arXiv 2012.12877, §4. With student logits Z, teacher logits Z_t, label y and the teacher's decision y_t = argmax Z_t:

    soft    (1 − λ) CE(Z, y) + λ τ² KL(softmax(Z_t/τ) ‖ softmax(Z/τ))         eq. 2, λ = 0.1, τ = 3
    hard    (1 − λ) CE(Z, y) + λ CE(Z, y_t)                                   eq. 3, λ = ½
    token   (1 − λ) CE(Z_class, y) + λ CE(Z_distillation, y_t)                λ = ½; one head each

Where labels are mixed or smoothed, y is; y_t never is. The teacher sees the very pixels that the student sees, cropped, coloured and
mixed, brought to its own size and normalisation; it is in evaluation mode and gets no gradient.
Differs from the paper: the KL divergence is averaged over the batch, as eq. 2 says; the authors' code also divides it by K.

Axes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kawara.data.loading import Batch
from kawara.data.mixing import mix
from kawara.data.preprocessing import Preprocessing
from kawara.errors import ConfigError
from kawara.models import ImageModel
from kawara.tasks.classification import ClassificationConfig, soft_target_cross_entropy

Kind = Literal["none", "soft", "hard", "token"]

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: what Pillow turns colours into grey with."""


@dataclass(frozen=True)
class DistillationConfig:
    """Whom to learn from, and how. `weight` is λ; 0 takes the paper's: 0.1 for soft, ½ for hard and token."""

    teacher: str = ""
    kind: Kind = "none"
    weight: float = 0.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if bool(self.teacher) != (self.kind != "none"):
            raise ConfigError(
                "A teacher and a way to learn from it go together.",
                got=f"teacher {self.teacher or 'none'}, distill {self.kind}",
                remedy="--teacher FILE --distill soft|hard|token",
            )
        if not 0 <= self.weight <= 1:
            raise ConfigError("distillation.weight is the teacher's share of the loss.", got=self.weight, allowed="0 (the paper's) to 1")
        if self.temperature <= 0:
            raise ConfigError("distillation.temperature must be positive.", got=self.temperature)

    @property
    def share(self) -> float:
        """λ, with the paper's value filled in."""
        return self.weight or (0.1 if self.kind == "soft" else 0.5)


class Teacher:
    """A finished model that answers for the student's input.

    `columns` puts its classes into the student's order. Raises ConfigError where the classes are not the same, naming both lists.
    """

    def __init__(
        self,
        model: ImageModel,
        preprocessing: Preprocessing,
        class_names: tuple[str, ...],
        *,
        student: Preprocessing,
        student_classes: tuple[str, ...],
        device: torch.device,
    ):
        check_classes(class_names, student_classes)
        self.model = model.to(device).eval().requires_grad_(False)
        self.preprocessing, self.student = preprocessing, student
        self.columns = torch.tensor([class_names.index(name) for name in student_classes], device=device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, H, W) normalised as the student's."""
        return self.model(self.translate(images))[:, self.columns].float()

    def translate(self, images: Tensor) -> Tensor:
        """Bring images from the student's normalisation, colour and size to the teacher's."""
        mine, yours = self.student, self.preprocessing
        if mine == yours:
            return images
        images_01 = images.float() * _per_channel(mine.std, images) + _per_channel(mine.mean, images)
        if mine.color == "grey" and yours.color == "rgb":
            images_01 = images_01.expand(-1, 3, -1, -1)
        elif mine.color == "rgb" and yours.color == "grey":
            images_01 = (images_01 * _per_channel(LUMA, images)).sum(dim=1, keepdim=True)
        if images_01.shape[-2:] != yours.image_size:
            images_01 = F.interpolate(images_01, yours.image_size, mode=yours.interpolation, antialias=True, align_corners=False)
        return (images_01 - _per_channel(yours.mean, images)) / _per_channel(yours.std, images)


def check_classes(teacher: tuple[str, ...], student: tuple[str, ...]) -> None:
    """Raise ConfigError unless both name the same classes, in whatever order."""
    if sorted(teacher) != sorted(student):
        raise ConfigError(
            "The teacher knows other classes than the data have.",
            got=f"teacher: {_few(teacher)}",
            allowed=f"the data's: {_few(student)}",
            remedy="a teacher trained on the same classes: kawara train DATA --model …",
        )


class Distillation:
    """The task of naming the class of an image, with a teacher beside the labels."""

    def __init__(self, task: ClassificationConfig, config: DistillationConfig, teacher: Teacher, num_classes: int, seed: int):
        self.task, self.config, self.teacher, self.num_classes, self.seed = task, config, teacher, num_classes, seed

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of one training batch and how many of its images were called right (by the larger label share)."""
        images, targets = mix(
            batch.images,
            batch.labels,
            self.task.mix,
            num_classes=self.num_classes,
            smoothing=self.task.label_smoothing,
            seed=self.seed,
            step=step,
        )
        answers = self.teacher(images)
        heads: tuple[Tensor, ...] = model.forward_heads(images)  # type: ignore[operator]
        right = (sum(heads).detach().argmax(dim=-1) == targets.argmax(dim=-1)).sum()  # type: ignore[union-attr]
        return distillation_loss(heads, targets, answers, self.config), right


def distillation_loss(heads: tuple[Tensor, ...], targets: Tensor, teacher: Tensor, config: DistillationConfig) -> Tensor:
    """Return the loss of the module's formulas.

    `heads` are the student's logits (B, K), two for "token"; `targets` (B, K) probabilities; `teacher` logits (B, K).
    With two heads and "soft" or "hard", their mean is the student.
    """
    share = config.share
    if config.kind == "token":
        class_logits, distillation_logits = heads
        return (1 - share) * soft_target_cross_entropy(class_logits, targets) + share * F.cross_entropy(
            distillation_logits.float(), teacher.argmax(dim=-1)
        )
    logits = torch.stack(heads).mean(dim=0).float()
    label_loss = soft_target_cross_entropy(logits, targets)
    if config.kind == "hard":
        return (1 - share) * label_loss + share * F.cross_entropy(logits, teacher.argmax(dim=-1))
    tau = config.temperature
    divergence = F.kl_div(F.log_softmax(logits / tau, dim=-1), F.log_softmax(teacher / tau, dim=-1), reduction="batchmean", log_target=True)
    return (1 - share) * label_loss + share * tau**2 * divergence


@torch.inference_mode()
def agreement(model: ImageModel, teacher: Teacher, batches: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return how often teacher, class head, distillation head, both heads and the labels decide alike (DeiT, table 4 shows the rest to 1).

    `who` names the rows and columns of `same`, fractions in [0, 1].
    """
    model.eval()
    decisions: list[Tensor] = []
    who: list[str] = []
    for batch in batches:
        with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
            heads = [logits.float() for logits in model.forward_heads(batch.images)]
            rows = {"labels": batch.labels, "teacher": teacher(batch.images).argmax(dim=-1)}
        if len(heads) == 1:
            rows["student"] = heads[0].argmax(dim=-1)
        else:
            rows |= {"class head": heads[0].argmax(dim=-1), "distillation head": heads[1].argmax(dim=-1)}
            rows["both heads"] = (heads[0] + heads[1]).argmax(dim=-1)
        who = list(rows)
        decisions.append(torch.stack(list(rows.values())).cpu())
    decided = torch.cat(decisions, dim=1)
    same = (decided[:, None] == decided[None]).double().mean(dim=-1)
    return {"who": who, "same": [[round(value, 6) for value in row] for row in same.tolist()]}


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, -1, 1, 1)


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
