"""The learning rate that an optimiser usually takes: the largest that is known to work, by batch and width.

| optimiser | rate for a batch of B and a width of D | from |
|---|---|---|
| `adamw`, `adam` | the larger of 5e-4 · B/512 | DeiT, arXiv 2012.12877, table 9 |
| | and 3e-3 · min(1, 128/D) · min(1, √(B/128)) | recipe `small`, docs/lab-log.md; 1/D: arXiv 2203.03466 |
| `sgd` | 0.1 · max(1, B/256) · (1 − momentum)/0.1 | arXiv 1706.02677 |
| `muon` | `muon_lr` 0.02 for matrices; `lr` as for `adamw`, without the width | docs/lab-log.md |

What is trained beside a backbone that moves slowly, a new head above all, takes the rate without the width, too.

Axes: B images a step, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from kawara.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Rate:
    """One of the rates of a run: the setting that it belongs to, its peak, and what is usual."""

    setting: str
    peak: float
    usual: float

    @property
    def excess(self) -> float:
        """The peak as a multiple of what is usual."""
        return self.peak / self.usual


def usual_rate(name: str, batch_size: int, width: int | None = None, momentum: float = 0.9) -> float:
    """Return the usual peak of `optimizer.lr` for B images a step; without a width, that of parameters for which width does not matter."""
    if name == "sgd":
        return 0.1 * max(1.0, batch_size / 256) * (1 - momentum) / 0.1
    narrowing = min(1.0, 128 / width) if width else 1.0
    return max(5e-4 * batch_size / 512, 3e-3 * narrowing * min(1.0, (batch_size / 128) ** 0.5))


USUAL_MUON_RATE = 0.02


def rates(config: OptimizerConfig, batch_size: int, width: int | None, *, frozen_backbone: bool = False) -> list[Rate]:
    """Return the rates of a run of B images a step, the most unusual first. `frozen_backbone`: only the head is trained."""
    peak = config.lr * (batch_size / config.lr_batch if config.lr_batch else 1.0)
    found = [Rate("optimizer.lr", peak, usual_rate(config.name, batch_size, momentum=config.momentum))]
    if config.name == "muon":
        found.append(Rate("optimizer.muon_lr", config.muon_lr * config.backbone_rate, USUAL_MUON_RATE))
    elif not frozen_backbone:
        usual = usual_rate(config.name, batch_size, width, config.momentum)
        found.append(Rate("optimizer.lr", peak * config.backbone_rate, usual))
    return sorted(found, key=lambda rate: -rate.excess)
