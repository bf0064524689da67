"""The Vision Transformer, with the variations that matter in practice.

ViT: An Image is Worth 16x16 Words, arXiv 2010.11929, eqs. 1–4. DeiT: distillation token and second head, arXiv 2012.12877.
DeiT-III: layer scale, positions for patches only, arXiv 2204.07118. Registers: arXiv 2309.16588. Token merging: arXiv 2210.09461.
Convolutional stem: arXiv 2106.14881. Attention pooling ("MAP"): arXiv 2106.04560. SwiGLU: arXiv 2304.07193 (DINOv2).

    z₀ = [class; distillation; registers; x_p E] + positions        (registers never have a position)
    z  = block_L( … block_1(z₀))                                    layers/residual.py
    y  = head(LN(z) at the class token, or averaged over the patches, or pooled by attention)

Hybrids (§3.1 of the paper) look through a ResNet: stem "resnet". Differs from the paper: the head of pre-training is one linear layer
(DeiT), unless `head_hidden` asks for the paper's MLP with tanh.

Parameter names are timm's (`cls_token`, `pos_embed`, `blocks.0.attn.qkv.weight`, …), which the field knows by heart; the norm
that timm calls `fc_norm` in mean-pooled models is `norm` here too.

Axes: B batch, C channels, H W pixels, P patch side, h w patch grid, R prefix tokens, N = R + h·w tokens, D width, M heads, F MLP hidden,
L blocks, K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kawara.errors import ConfigError, UnknownNameError
from kawara.layers.bit_resnet import BottleneckUnit, ResNetEmbedding, check_resnet
from kawara.layers.feedforward import Activation, Mlp, TanhLayer
from kawara.layers.merging import Merging, merge_schedule
from kawara.layers.patch import ConvolutionalStem, PatchEmbedding, PatchProjection, StemNorm, check_stem, patch_grid, stem_channels
from kawara.layers.pooling import AttentionPooling
from kawara.layers.position import PositionResize, resize_positions, sincos_positions
from kawara.layers.residual import Block, LayerScale, stochastic_depth_rates
from kawara.models.interface import Features, ImageModel, names_without_decay, new_head

Stem = Literal["patch", "conv", "resnet"]
Pool = Literal["class", "mean", "map"]
Position = Literal["learned", "sincos", "none"]
FinalNorm = Literal["tokens", "pooled"]
Initialisation = Literal["deit", "zero_residual"]

_CHOICES = {
    "stem": Stem,
    "pool": Pool,
    "position": Position,
    "position_resize": PositionResize,
    "final_norm": FinalNorm,
    "initialisation": Initialisation,
    "mlp": Mlp,
    "activation": Activation,
    "stem_norm": StemNorm,
    "stem_activation": Activation,
}
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
_STEM_OPTIONS = {"stem_": "conv", "resnet_": "resnet"}
"""What the names of options start with that act only with one kind of stem."""


@dataclass(frozen=True)
class ViTConfig:
    """Everything that fixes the architecture of a ViT. The defaults are ViT-Ti/16 at 224 px.

    Raises ConfigError where the values do not go together.
    """

    image_size: tuple[int, int] = (224, 224)
    """(H, W) the position table is made for; other sizes resize it."""
    channels: int = 3
    num_classes: int = 1000
    """K; 0 for a backbone without head."""
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_hidden: int = 768
    mlp: Mlp = "dense"
    """swiglu: gated, `mlp_hidden` wide each for gate and values (DINOv2's ViT-g)."""
    activation: Activation = "gelu"
    bias: bool = True
    """Whether the linear layers of the blocks have biases."""
    norm_eps: float = 1e-6

    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0
    pool: Pool = "class"
    """mean: over the patch tokens, prefix left out. map: a learned query asks the patch tokens (multi-head attention pooling)."""
    final_norm: FinalNorm = "tokens"
    """tokens: norm every token, then pool (the paper). pooled: pool, then norm (timm's mean pooling, MAE fine-tuning)."""
    head_hidden: int | None = None
    """Width of a hidden layer with tanh in the head (the paper's pre-training, `pre_logits` in its code); None: a linear head."""

    position: Position = "learned"
    class_position: bool = True
    """Whether class and distillation token have entries in a learned table (DeiT-III and models with registers: no)."""
    position_resize: PositionResize = "bicubic-antialias"

    layer_scale: float | None = None
    """Starting value of γ; None: no layer scale."""
    stochastic_depth: float = 0.0
    """Rate of the last block; earlier ones have less, linearly from 0."""
    dropout: float = 0.0
    """After position embedding and after every dense layer except qkv (ViT, App. B.1)."""
    attention_dropout: float = 0.0

    merge: int = 0
    """r: how many tokens a block merges into others that are alike (layers/merging.py); 0: none."""
    merge_inflection: float = 0.0
    """0: r in every block; towards −1: more in early blocks, down to none in the last; towards 1: more in late ones."""
    merge_every: int = 1
    """1: every block merges r; k: every k-th block merges k·r, beginning with block k."""
    merge_proportional: bool = True
    """Whether a merged token is attended in proportion to its size: for weights that were trained without merging, or so."""

    stem: Stem = "patch"
    stem_hidden: tuple[int, ...] | None = None
    """Output channels of the strided convolutions; None: doubling, the last one the width."""
    stem_norm: StemNorm = "batch"
    stem_activation: Activation = "relu"
    stem_projection: bool = False
    """Whether a 1×1 convolution follows even where the last convolution has the width already."""
    resnet_blocks: tuple[int, ...] = (3, 4, 9)
    """Blocks in each stage of stem 'resnet'. `patch_size` is the total stride, as in the names of hybrids: R50+ViT-B/16."""
    resnet_width: int = 64
    """Channels after the root of the ResNet."""

    initialisation: Initialisation = "deit"
    """See `initialise`."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError(f"value of {name}", str(getattr(self, name)), [str(choice) for choice in get_args(choices)])
        for name in ("channels", "patch_size", "width", "depth", "heads", "mlp_hidden", "merge_every"):
            _require(getattr(self, name) >= 1, f"The model option {name} must be at least 1.", getattr(self, name))
        for name in ("num_classes", "registers", "merge"):
            _require(getattr(self, name) >= 0, f"The model option {name} cannot be negative.", getattr(self, name))
        for name in ("stochastic_depth", "dropout", "attention_dropout"):
            _require(0.0 <= getattr(self, name) < 1.0, f"The model option {name} is a probability below 1.", getattr(self, name))
        _require(-1.0 <= self.merge_inflection <= 1.0, "The model option merge_inflection lies between -1 and 1.", self.merge_inflection)
        for name, default in (("merge_inflection", 0.0), ("merge_every", 1), ("merge_proportional", True)):
            _require(
                self.merge > 0 or getattr(self, name) == default,
                f"The model option {name} acts only with merge.",
                f"{name} {getattr(self, name)}, merge 0",
            )
        _require(len(self.image_size) == 2 and min(self.image_size) >= 1, "The image size is two numbers of pixels.", self.image_size)
        _require(self.pool != "class" or self.class_token, "pool 'class' needs a class token.", "class_token False", "pool 'mean'")
        if self.width % self.heads:
            raise ConfigError("The width must be a multiple of the number of heads.", got=f"width {self.width}, heads {self.heads}")
        if self.position == "sincos":
            _require(self.width % 4 == 0, "2-D sin-cos positions need a width that is a multiple of 4.", self.width)
        _require(
            self.mlp == "dense" or self.activation == "gelu",
            "SwiGLU has a non-linearity of its own.",
            f"activation {self.activation!r}",
        )
        _require(self.pool != "map" or self.final_norm == "tokens", "pool 'map' pools normed tokens.", f"final_norm {self.final_norm!r}")
        if self.head_hidden is not None:
            _require(self.head_hidden >= 1, "The model option head_hidden must be at least 1.", self.head_hidden)
            _require(self.num_classes > 0, "head_hidden is part of a head: it needs classes.", "num_classes 0")
            _require(not self.distillation_token, "A model with a distillation token has linear heads.", f"head_hidden {self.head_hidden}")
        for prefix, stem in _STEM_OPTIONS.items():
            unused = [
                field.name
                for field in dataclasses.fields(self)
                if field.name.startswith(prefix) and getattr(self, field.name) != field.default
            ]
            _require(self.stem == stem or not unused, f"These model options act only with stem {stem!r}.", ", ".join(unused))
        if self.stem == "conv":
            check_stem(self.patch_size, self.stem_channels)
            return
        if self.stem == "resnet":
            check_resnet(self.patch_size, self.resnet_width, self.resnet_blocks)
        patch_grid(self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) at `image_size`."""
        height, width = self.image_size
        return -(-height // self.patch_size), -(-width // self.patch_size)

    @property
    def num_prefix(self) -> int:
        """R."""
        return int(self.class_token) + int(self.distillation_token) + self.registers

    @property
    def num_positioned_prefix(self) -> int:
        """How many prefix tokens have an entry in the position table."""
        if self.position != "learned" or not self.class_position:
            return 0
        return int(self.class_token) + int(self.distillation_token)

    @property
    def num_tokens(self) -> int:
        """N at `image_size`."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def merge_schedule(self) -> tuple[int, ...]:
        """How many tokens each block merges, as far as there are enough."""
        return merge_schedule(self.merge, self.depth, self.merge_inflection, self.merge_every)

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Output channels of the strided convolutions of stem 'conv'."""
        return stem_channels(self.width, self.patch_size) if self.stem_hidden is None else self.stem_hidden


class VisionTransformer(ImageModel):
    """A ViT: normalised images (B, C, H, W) to logits (B, K), for any H and W that are multiples of the patch."""

    config: ViTConfig
    head_names = ("head", "head_dist")
    pos_embed: Tensor | None

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.num_features = config.width
        self.num_layers = config.depth + 1

        self.patch_embed = _make_stem(config)
        self.cls_token = _token(config, 1) if config.class_token else None
        self.dist_token = _token(config, 1) if config.distillation_token else None
        self.reg_token = _token(config, config.registers) if config.registers else None
        if config.position == "learned":
            self.pos_embed = _token(config, config.num_positioned_prefix + config.grid[0] * config.grid[1])
        else:
            self.register_buffer("pos_embed", sincos_positions(config.grid, config.width) if config.position == "sincos" else None)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_hidden,
                mlp=config.mlp,
                activation=config.activation,
                bias=config.bias,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                stochastic_depth=rate,
                layer_scale=config.layer_scale,
                norm_eps=config.norm_eps,
            )
            for rate in stochastic_depth_rates(config.stochastic_depth, config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn_pool = _make_attention_pooling(config)
        self.pre_logits = None if config.head_hidden is None else TanhLayer(config.width, config.head_hidden)
        self.head = new_head(config.head_hidden or config.width, config.num_classes)
        self.head_dist = new_head(config.width, config.num_classes) if config.distillation_token else None
        initialise(self)

    def features(self, image: Tensor) -> Features:
        """Run everything but the head on (B, C, H, W). Raises ConfigError for images this model cannot take.

        Where tokens are merged, each patch is given the token that it went into.
        """
        return self._encode(image, unmerge=True)

    def forward_heads(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each head apart.

        Where the heads read class and distillation token alone, the last block answers for these alone: the same numbers, for
        about five sixths of that block's work less. While a tap looks into the last block, it runs whole.
        """
        last = self.blocks[-1]
        tapped = any(module._forward_hooks or module._forward_pre_hooks for module in last.modules())
        if self.config.pool != "class" or tapped:
            return self.apply_heads(self._encode(image))
        return self.apply_heads(self._encode(image, num_queries=1 + self.config.distillation_token))

    def _encode(self, image: Tensor, num_queries: int | None = None, unmerge: bool = False) -> Features:
        """Run stem and blocks; the last block returns its first `num_queries` tokens, or all."""
        self.check_image(image)
        config, grid = self.config, self.patch_embed.grid((image.shape[-2], image.shape[-1]))
        merging = Merging(config.merge_schedule, config.num_prefix, proportional=config.merge_proportional) if config.merge else None
        tokens = self.embed(self.patch_embed(image), grid)
        for block in self.blocks[:-1]:
            tokens = block(tokens, merging=merging)
        features = self.pool(self.blocks[-1](tokens, num_queries, merging=merging), grid, merging)
        if merging is None or not unmerge:
            return features
        return dataclasses.replace(features, tokens=merging.unmerge(features.tokens, config.num_prefix + grid[0] * grid[1]))

    def embed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add positions to (B, h·w, D) patch tokens and put the prefix tokens before them: (B, N, D)."""
        prefix = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if self.pos_embed is not None:
            num_positioned = self.config.num_positioned_prefix
            positions = resize_positions(
                self.pos_embed, self.config.grid, grid, num_prefix=num_positioned, method=self.config.position_resize
            )
            # Under autocast the table is float32 and so becomes the stream from here on, as it should.
            patches = patches + positions[:, num_positioned:]
            prefix = [token + positions[:, i : i + 1] if i < num_positioned else token for i, token in enumerate(prefix)]
        if self.reg_token is not None:
            prefix.append(self.reg_token)
        if prefix:
            patches = torch.cat([*(token.expand(patches.shape[0], -1, -1) for token in prefix), patches], dim=1)
        return self.dropout(patches)

    def pool(self, tokens: Tensor, grid: tuple[int, int], merging: Merging | None = None) -> Features:
        """Apply the final norm to (B, N, D) tokens and pool them; merged ones count as often as they stand for patches."""
        num_prefix = self.config.num_prefix
        norm_tokens = self.config.final_norm == "tokens"
        if norm_tokens:
            tokens = self.norm(tokens)
        if self.config.pool == "class":
            pooled = tokens[:, 0]
        else:
            patches = tokens[:, num_prefix:]
            size = None if merging is None or merging.size is None else merging.size[:, num_prefix:]
            if self.attn_pool is not None:
                bias = None if merging is None or merging.key_bias is None else merging.key_bias[..., num_prefix:]
                pooled = self.attn_pool(patches, bias)
            else:
                pooled = patches.mean(dim=1) if size is None else (patches * size).sum(dim=1) / size.sum(dim=1)
        distillation = None if self.dist_token is None else tokens[:, int(self.config.class_token)]
        if not norm_tokens:
            pooled = self.norm(pooled)
            distillation = None if distillation is None else self.norm(distillation)
        return Features(tokens, grid, num_prefix, pooled, distillation)

    def apply_heads(self, features: Features) -> tuple[Tensor, ...]:
        logits = self.head(features.pooled if self.pre_logits is None else self.pre_logits(features.pooled))
        if self.head_dist is None or features.distillation is None:
            return (logits,)
        return logits, self.head_dist(features.distillation)

    def layer_index(self, parameter_name: str) -> int:
        """Return 0 for stem, tokens and positions, i + 1 for block i, L + 1 for the rest (MAE and BEiT fine-tuning)."""
        first, _, rest = parameter_name.partition(".")
        if first == "patch_embed" or first in _TOKENS:
            return 0
        if first == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.num_layers

    def no_decay(self) -> set[str]:
        return names_without_decay(self, (*_TOKENS, "attn_pool.latent"))

    @torch.no_grad()
    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Make (H, W) px the model's own size: the position table is resized once, and trained on in the new size."""
        new = dataclasses.replace(self.config, image_size=image_size)
        if self.pos_embed is not None and new.grid != self.config.grid:
            if self.config.position == "sincos":
                table = sincos_positions(new.grid, new.width).to(self.pos_embed)
            else:
                num_prefix, method = self.config.num_positioned_prefix, self.config.position_resize
                table = resize_positions(self.pos_embed, self.config.grid, new.grid, num_prefix=num_prefix, method=method)
            self.pos_embed = nn.Parameter(table) if isinstance(self.pos_embed, nn.Parameter) else table
        self.config = new

    def set_merging(self, r: int, inflection: float = 0.0, *, every: int = 1, proportional: bool = True) -> None:
        """Merge r tokens a block from now on (see `layers/merging.py`); 0: none. Raises ConfigError for what cannot be."""
        self.config = dataclasses.replace(
            self.config, merge=r, merge_inflection=inflection, merge_every=every, merge_proportional=proportional
        )

    @torch.no_grad()
    def add_distillation_token(self) -> None:
        """Give a trained model the second token and head of a distilled one; nothing happens where it has them.

        The token begins as a copy of the class token, its place in the position table too, and therefore sees what that one sees; the
        head begins at zero. Raises ConfigError for a model without a class token.
        """
        if self.config.distillation_token:
            return
        if self.cls_token is None:
            raise ConfigError(
                "A distillation token stands beside a class token, and this model has none.", remedy="soft or hard distillation"
            )
        if self.config.num_positioned_prefix and self.pos_embed is not None:
            self.pos_embed = nn.Parameter(torch.cat([self.pos_embed[:, :1], self.pos_embed], dim=1))
        self.config = dataclasses.replace(self.config, distillation_token=True)
        self.dist_token = nn.Parameter(self.cls_token.clone())
        self.head_dist = new_head(self.num_features, self.config.num_classes).to(self.norm.weight.device, self.norm.weight.dtype)

    def reset_head(self, num_classes: int) -> None:
        # Fine-tuning puts one linear layer in place of the whole head of pre-training (ViT, §3.2).
        self.config = dataclasses.replace(self.config, head_hidden=None)
        self.pre_logits = None
        super().reset_head(num_classes)


@torch.no_grad()
def initialise(model: VisionTransformer) -> None:
    """Draw every parameter of a ViT anew. N_t(σ) is a normal of deviation σ cut at ±2 absolute, as in timm.

    | tensor                              | deit                      | zero_residual                                  |
    |-------------------------------------|---------------------------|------------------------------------------------|
    | positions (learned)                 | N_t(0.02)                 | same                                           |
    | class and distillation token        | N_t(0.02)                 | same                                           |
    | registers                           | N(1e-6)                   | same                                           |
    | qkv, fc1 weights                    | N_t(0.02)                 | N_t(0.5/√fan_in)                               |
    | attention proj, fc2 weights         | N_t(0.02)                 | 0: each block starts as the identity           |
    | biases of the blocks                | 0                         | same                                           |
    | attention pooling: latent           | N_t(0.02)                 | same                                           |
    | attention pooling: weights, biases  | N_t(0.02), 0              | N_t(0.5/√fan_in), 0                            |
    | patch projection, weight and bias   | U(±1/√(P²C))              | same                                           |
    | stem: 3×3 convolutions              | N(√(2/fan_in))            | same                                           |
    | stem: 1×1 convolution, bias         | N(1/√fan_in), 0           | same                                           |
    | ResNet: convolutions                | N(1/√fan_in)              | same                                           |
    | LayerNorm, BatchNorm, GroupNorm     | γ=1, β=0                  | same                                           |
    | ResNet: last norm of each unit      | γ=0, β=0 (their code)     | same                                           |
    | layer scale                         | config.layer_scale        | same                                           |
    | head: hidden layer, bias            | N_t(0.02), 0              | N_t(0.5/√fan_in), 0                            |
    | head (both heads)                   | 0                         | same                                           |

    "deit" follows DeiT (arXiv 2012.12877, §6: ViTs are sensitive to initialisation, truncated normal is safe) except for the head, which
    is zero as in the ViT paper's code: the first loss is then exactly ln K, and a head for fine-tuning starts the same way.
    "zero_residual" scales with the width, for narrow models, where 0.02 is far below 1/√D. A short trial shows no difference (femto_conv_4
    on Fashion-MNIST, AdamW, 350 steps, 2 seeds: 71 % with either); it is the one the runs with Muon were made with.
    """
    config = model.config
    pooling = model.attn_pool
    for token in (model.cls_token, model.dist_token, model.pos_embed, None if pooling is None else pooling.latent):
        if isinstance(token, nn.Parameter):
            nn.init.trunc_normal_(token, std=0.02)
    if model.reg_token is not None:
        nn.init.normal_(model.reg_token, std=1e-6)
    if config.position == "sincos" and model.pos_embed is not None:
        model.pos_embed.copy_(sincos_positions(config.grid, config.width))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm | PatchProjection):
            module.reset_parameters()
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.initial)
        elif isinstance(module, nn.Conv2d):
            gain = 2.0 if module.kernel_size == (3, 3) and config.stem == "conv" else 1.0
            nn.init.normal_(module.weight, std=(gain / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, BottleneckUnit):
            nn.init.zeros_(module.norm3.weight)
    scaled = config.initialisation == "zero_residual"
    linears: list[tuple[nn.Linear, bool]] = []  # and whether it ends a branch beside a skip connection
    for block in model.blocks:
        assert isinstance(block, Block)
        linears += [(block.attn.qkv, False), (block.mlp.fc1, False), (block.attn.proj, True), (block.mlp.fc2, True)]
    if pooling is not None:  # nothing runs beside it: were its last layers zero, neither they nor the zero head would ever learn
        attention, mlp = pooling.attn, pooling.mlp
        linears += [(linear, False) for linear in (attention.query, attention.key_value, attention.proj, mlp.fc1, mlp.fc2)]
    if model.pre_logits is not None:
        linears.append((model.pre_logits, False))
    for linear, ends_branch in linears:
        std = 0.02 if not scaled else 0.0 if ends_branch else 0.5 * linear.in_features**-0.5
        _initialise_linear(linear, std)
    for head in (model.head, model.head_dist):
        if isinstance(head, nn.Linear):  # not Identity (no classes), not None (no second head)
            _initialise_linear(head, 0.0)


def _initialise_linear(linear: nn.Linear, std: float) -> None:
    if std:
        nn.init.trunc_normal_(linear.weight, std=std)
    else:
        nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _make_attention_pooling(config: ViTConfig) -> AttentionPooling | None:
    if config.pool != "map":
        return None
    return AttentionPooling(config.width, config.heads, config.mlp_hidden, activation=config.activation, norm_eps=config.norm_eps)


def _make_stem(config: ViTConfig) -> PatchEmbedding | ConvolutionalStem | ResNetEmbedding:
    if config.stem == "patch":
        return PatchEmbedding(config.channels, config.width, config.patch_size)
    if config.stem == "resnet":
        return ResNetEmbedding(config.channels, config.width, config.patch_size, config.resnet_width, config.resnet_blocks)
    return ConvolutionalStem(
        config.channels,
        config.width,
        config.patch_size,
        config.stem_channels,
        norm=config.stem_norm,
        activation_name=config.stem_activation,
        projection=config.stem_projection,
    )


def _token(config: ViTConfig, count: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, count, config.width))


def _require(holds: bool, what: str, got: object, remedy: str | None = None) -> None:
    if not holds:
        raise ConfigError(what, got=got, remedy=remedy)
