"""The losses of DeiT, §4, against their formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kawara.data.loading import Batch
from kawara.data.mixing import MixConfig
from kawara.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kawara.errors import ConfigError
from kawara.models import create_model
from kawara.tasks.classification import ClassificationConfig
from kawara.tasks.distillation import Distillation, DistillationConfig, Teacher, agreement, distillation_loss

RGB8 = Preprocessing((8, 8), crop_fraction=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
NAMES = ("ant", "bee", "cat")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draws():
    torch.manual_seed(0)
    student, other, teacher = torch.randn(3, 6, 3).unbind()
    return student, other, teacher, torch.rand(6, 3).softmax(dim=-1)


@pytest.mark.parametrize(("share", "tau"), [(0.1, 3.0), (0.7, 1.0)])
def test_soft_is_equation_2(share, tau):
    student, _, teacher, targets = draws()
    got = distillation_loss((student,), targets, teacher, DistillationConfig("t", "soft", weight=share, temperature=tau))
    z, t, y = (tensor.double().numpy() for tensor in (student, teacher, targets))
    cross_entropy = np.mean([-(y[i] * np.log(softmax(z[i]))).sum() for i in range(6)])
    p, q = softmax(t / tau), softmax(z / tau)
    divergence = np.mean([sum(p[i, k] * np.log(p[i, k] / q[i, k]) for k in range(3)) for i in range(6)])
    assert got.item() == pytest.approx((1 - share) * cross_entropy + share * tau**2 * divergence, rel=1e-5)


def test_hard_is_equation_3_and_the_token_has_a_head_of_its_own():
    student, other, teacher, targets = draws()
    z, o, y = (tensor.double().numpy() for tensor in (student, other, targets))
    decided = teacher.argmax(dim=-1).numpy()
    cross_entropy = np.mean([-(y[i] * np.log(softmax(z[i]))).sum() for i in range(6)])
    taught = np.mean([-np.log(softmax(z[i])[decided[i]]) for i in range(6)])
    taught_other = np.mean([-np.log(softmax(o[i])[decided[i]]) for i in range(6)])
    hard = distillation_loss((student,), targets, teacher, DistillationConfig("t", "hard"))
    token = distillation_loss((student, other), targets, teacher, DistillationConfig("t", "token"))
    assert hard.item() == pytest.approx(0.5 * cross_entropy + 0.5 * taught, rel=1e-5)
    assert token.item() == pytest.approx(0.5 * cross_entropy + 0.5 * taught_other, rel=1e-5)


def test_a_student_equal_to_its_teacher_has_no_divergence():
    student, _, _, targets = draws()
    config = DistillationConfig("t", "soft", weight=1.0)
    assert distillation_loss((student,), targets, student, config).item() == pytest.approx(0, abs=1e-6)


def teacher_for(student: Preprocessing, own: Preprocessing, names: tuple[str, ...] = NAMES) -> Teacher:
    torch.manual_seed(1)
    model = create_model("vit_femto_4", num_classes=3, image_size=own.image_size, channels=own.channels)
    torch.nn.init.normal_(model.head.weight)
    return Teacher(model, own, names, student=student, student_classes=NAMES, device=torch.device("cpu"))


def test_the_teacher_sees_the_same_picture_in_its_own_size_colours_and_class_order():
    own = Preprocessing((16, 16), crop_fraction=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    teacher = teacher_for(RGB8, own, names=("cat", "ant", "bee"))
    images_u8 = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)  # one colour: resizing changes nothing
    seen = teacher.translate(RGB8.normalise(images_u8))
    torch.testing.assert_close(seen, own.normalise(torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)), atol=1e-5, rtol=1e-5)
    direct = teacher.model(own.normalise(torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)))
    torch.testing.assert_close(teacher(RGB8.normalise(images_u8)), direct[:, [1, 2, 0]], atol=1e-4, rtol=1e-4)


def test_grey_students_and_colour_teachers_understand_each_other():
    grey = Preprocessing((8, 8), color="grey", crop_fraction=1.0, mean=(0.5,), std=(0.5,))
    seen = teacher_for(grey, RGB8).translate(grey.normalise(torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)))
    torch.testing.assert_close(seen, RGB8.normalise(torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)), atol=1e-5, rtol=1e-5)
    back = teacher_for(RGB8, grey).translate(
        RGB8.normalise(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    )
    torch.testing.assert_close(back, torch.full((1, 1, 8, 8), (0.299 - 0.5) / 0.5), atol=1e-5, rtol=1e-5)


def test_other_classes_are_refused_with_both_lists():
    with pytest.raises(ConfigError, match="teacher: 3 classes: ant, bee, dog") as caught:
        teacher_for(RGB8, RGB8, names=("ant", "bee", "dog"))
    assert "ant, bee, cat" in str(caught.value)


def test_the_task_asks_the_teacher_about_the_mixed_images_and_moves_only_the_student():
    teacher = teacher_for(RGB8, RGB8)
    teacher.model.train()  # somebody may have: the task must not rely on a mode set long ago
    teacher.model.eval()
    asked = []
    original = teacher.model.forward
    teacher.model.forward = lambda image: asked.append(image.clone()) or original(image)
    student = create_model("vit_femto_4", num_classes=3, image_size=8, class_token=True, pool="class", distillation_token=True)
    seen = []
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = Batch(torch.randn(8, 3, 8, 8), torch.arange(8) % 3, torch.arange(8))
    task = Distillation(ClassificationConfig(mix=MixConfig(mixup=0.8)), DistillationConfig("t", "token"), teacher, 3, 0)
    loss, _ = task.loss(student, batch, 0)
    loss.backward()
    assert not torch.equal(asked[0], batch.images)  # mixed
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head_dist.weight.grad.abs().sum() > 0


def test_agreement_counts_equal_decisions():
    teacher = teacher_for(RGB8, RGB8)
    batch = Batch(torch.randn(12, 3, 8, 8), torch.arange(12) % 3, torch.arange(12))
    found = agreement(teacher.model, teacher, [batch])
    same = dict(zip(found["who"], found["same"]))
    assert found["who"] == ["labels", "teacher", "student"]
    assert same["student"][1] == 1.0  # the teacher agrees with itself
    right = (teacher.model(batch.images).argmax(dim=-1) == batch.labels).double().mean().item()
    assert same["labels"][1] == pytest.approx(right, abs=1e-6)


def test_a_teacher_and_a_way_go_together():
    for teacher, kind in (("t", "none"), ("", "hard")):
        with pytest.raises(ConfigError, match="go together"):
            DistillationConfig(teacher, kind)
