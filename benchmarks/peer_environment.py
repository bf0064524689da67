"""Make torchvision, and with it timm, importable beside a CPU build of torch: import this first. For measurements only.

torchvision's wheel registers its compiled operators against CUDA; without them its import fails on the operators' names. Declaring
those names is enough for transforms, loaders and models; calling the operators (box suppression, used by detectors alone) is not possible.

The peers' environment is one of its own, because kawara itself must never see torchvision:

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0
    .venv-peers/bin/pip install --no-deps timm==1.0.31 "torchvision==0.28.*"
    .venv-peers/bin/pip install "pillow<13" pyyaml huggingface_hub -e ".[fast,openvino]"   # timm 1.0.31's RandAugment fails with Pillow 13
"""

from __future__ import annotations

import importlib.metadata

import torch

_declared = []  # a library's definitions last as long as the object

if not torch.cuda.is_available():
    for _operator in ("nms", "qnms"):
        _library = torch.library.Library("torchvision", "FRAGMENT")
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(_library)

import torchvision  # noqa: E402, F401


def versions() -> dict[str, str]:
    """Return the versions of what is compared, for the record."""
    return {name: importlib.metadata.version(name) for name in ("timm", "torchvision", "torch", "pillow", "numpy", "simplejpeg")}
