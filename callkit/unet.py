"""The DDPM U-Net (Ho et al., 2020) in the class-conditional form that the long-tail literature shares.

At the paper's size (128 channels, multipliers 1-2-2-2, attention at the second level) it has
35,751,427 trainable parameters with 10 classes and 35,797,507 with 100.
Forward is split into `encode` and `decode`, because CALL decodes twice from one encoding (Chapter 04).
notebooks/03_unet_and_ddim computes it by hand.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callkit.capacity import expert_scale, expert_weights

Masks = list[Tensor | None]  # of dropout, one a residual block in the order of their use; None: no dropout


class State(NamedTuple):
    """What the encoder hands to the decoder."""

    h: Tensor  # (B, C', H', W') the deepest features
    skips: list[Tensor]  # one per layer of the down path
    emb: Tensor  # (B, 4 * channels) time plus class
    masks: Masks  # of the up path

    def take(self, rows: Tensor | None) -> "State":
        """The state of these samples alone, in this order; of all for None."""
        return State(
            take(self.h, rows),
            [take(s, rows) for s in self.skips],
            take(self.emb, rows),
            [take(m, rows) for m in self.masks],
        )


def take(value: Tensor | None, rows: Tensor | slice | None) -> Tensor | None:
    return value if rows is None or value is None else value[rows]


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as in DDPM, or the most that divide `channels` with four or more channels each."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels >= 4 * g)
    return nn.GroupNorm(groups, channels)


class Attention(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # float32 also where the rest is bfloat16, whose rounding gives the keys' bias a gradient (Chapter 16)
        with torch.autocast(x.device.type, enabled=False):
            h = self.norm(x.float())
            # With a dimension of heads: without one PyTorch stores the whole attention matrix.
            q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))  # (B, 1, HW, C)
            h = self.proj(F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape))
        return x + h.to(x.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around the time-and-class embedding; attention behind them where asked for."""

    def __init__(self, in_channels: int, channels: int, emb_dim: int, attention: bool):
        super().__init__()
        self.norm1, self.conv1 = group_norm(in_channels), nn.Conv2d(in_channels, channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, channels)
        self.norm2, self.conv2 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.attention = Attention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(F.silu(emb))[:, :, None, None]
        h = F.silu(self.norm2(h))
        h = self.conv2(h if mask is None else h * mask)
        return self.attention(h + self.shortcut(x))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def check_sizes(channels: int, levels: int, attention_levels: tuple[int, ...]) -> None:
    """ValueError for a base width or levels that attend of which no `UNet` can be made."""
    if channels < 4 or channels % 4:
        raise ValueError(f"channels must be a multiple of 4, got {channels}")
    if not set(attention_levels) <= set(range(levels)):
        raise ValueError(f"attention_levels must lie in 0..{levels - 1}, got {attention_levels}")


class UNet(nn.Module):
    """eps_theta(x_t, t, y). ValueError as in `check_sizes`.

    * in_channels: image channels
    * num_classes: class count C; the label C means Null, "no class", and adds exactly nothing
    * channels: base width, a multiple of 4
    * channel_mult: width of each resolution level, in units of `channels`
    * attention_levels: indices of the levels that attend
    * num_res_blocks: residual blocks a level on the way down (one more on the way up)
    * dropout: inside each residual block
    * condition_size: how many more numbers a sample may be described by (ADA's nine, `augment`); none at all is zeros
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        attention_levels: tuple[int, ...] = (1,),
        num_res_blocks: int = 2,
        dropout: float = 0.1,
        condition_size: int = 0,
    ):
        super().__init__()
        check_sizes(channels, len(channel_mult), attention_levels)
        self.in_channels, self.num_classes, self.dropout = in_channels, num_classes, dropout
        self.downscaling = 2 ** (len(channel_mult) - 1)
        emb_dim = 4 * channels
        frequencies = 10_000 ** (-torch.arange(0, channels, 2) / channels)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.label = nn.Embedding(num_classes, emb_dim)
        self.augmentation = nn.Linear(condition_size, emb_dim, bias=False) if condition_size else None

        width = channels
        widths = [width]  # of the features that the up path will take over
        self.head = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.down.append(ResBlock(width, mult * channels, emb_dim, level in attention_levels))
                width = mult * channels
                widths.append(width)
            if level < len(channel_mult) - 1:
                self.down.append(Downsample(width))
                widths.append(width)

        self.middle = nn.ModuleList(
            [
                ResBlock(width, width, emb_dim, attention=True),
                ResBlock(width, width, emb_dim, attention=False),
            ]
        )

        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_res_blocks + 1):
                self.up.append(ResBlock(width + widths.pop(), mult * channels, emb_dim, level in attention_levels))
                width = mult * channels
            if level > 0:
                self.up.append(Upsample(width))

        self.tail = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, in_channels, 3, padding=1))
        self._initialise()

    def _initialise(self):
        """Xavier-uniform weights and zero biases. Every ResBlock's last convolution and the output start near zero;
        attention's projection does not, as in effect in the field's public code (pytorch-ddpm)."""
        near_zero = {m.conv2 for m in self.modules() if isinstance(m, ResBlock)} | {self.tail[-1]}
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(m.weight, gain=1e-5 if m in near_zero else 1.0)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def embed(self, t: Tensor, y: Tensor, augmentation: Tensor | None = None) -> Tensor:
        """Time plus class, (B, 4 * channels). Null may differ from sample to sample."""
        angles = t[:, None] * self.frequencies
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sin, cos interleaved
        null = y == self.num_classes
        emb = self.time(table) + self.label(y.masked_fill(null, 0)).masked_fill(null[:, None], 0.0)
        return emb if augmentation is None else emb + self.augmentation(augmentation)

    def dropout_masks(self, x_t: Tensor) -> Masks:
        """A mask for every residual block, 0 or 1 / (1 - dropout), from the global generator; all None in eval mode.

        Drawn before the forward pass, so that two predictions can share them, and be compared.
        """
        layers = [*self.down, *self.middle, *self.up]
        if not self.training or self.dropout == 0:
            return [None for layer in layers if isinstance(layer, ResBlock)]
        height, width = x_t.shape[-2:]
        contiguous = self.middle[0].conv1.weight.is_contiguous()
        memory_format = torch.contiguous_format if contiguous else torch.channels_last
        masks = []
        for layer in layers:
            if isinstance(layer, Downsample):
                height, width = height // 2, width // 2
            elif isinstance(layer, Upsample):
                height, width = height * 2, width * 2
            else:
                shape = (len(x_t), layer.conv2.in_channels, height, width)
                uniform = torch.empty(shape, device=x_t.device, memory_format=memory_format).uniform_()
                masks.append(uniform.ge_(self.dropout).div_(1 - self.dropout))  # not bernoulli_, slower on a CPU
        return masks

    def encode(
        self, x_t: Tensor, t: Tensor, y: Tensor, augmentation: Tensor | None = None, masks: Masks | None = None
    ) -> State:
        """The half that CALL leaves to both parameter sets. Shapes: (B, C, H, W), (B,), (B,), (B, condition_size).

        ValueError for another number of channels, or a height or width that cannot be halved at each level.
        """
        if x_t.ndim != 4 or x_t.shape[1] != self.in_channels:
            raise ValueError(f"images must be (B, {self.in_channels}, H, W), got {tuple(x_t.shape)}")
        if x_t.shape[-1] % self.downscaling or x_t.shape[-2] % self.downscaling:
            raise ValueError(f"height and width must be multiples of {self.downscaling}, got {tuple(x_t.shape[-2:])}")
        masks = list(masks or self.dropout_masks(x_t))
        emb = self.embed(t, y, augmentation)
        h = self.head(x_t)
        skips = [h]
        for layer in self.down:
            h = layer(h, emb, masks.pop(0)) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb, masks.pop(0))
        return State(h, skips, emb, masks)

    def decode(self, state: State) -> Tensor:
        """Predicted noise (B, C, H, W)."""
        h, skips, emb, masks = state.h, list(state.skips), state.emb, list(state.masks)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), emb, masks.pop(0))
            else:
                h = layer(h)
        with torch.autocast(h.device.type, enabled=False):  # eps is float32, also where the rest is bfloat16
            return self.tail(h.float())

    def forward(
        self, x_t: Tensor, t: Tensor, y: Tensor, augmentation: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        # Drawn out here also where `encode` is compiled: there they would be other ones.
        return self.decode(self.encode(x_t, t, y, augmentation, masks or self.dropout_masks(x_t)))

    def forward_both(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor,
        augmentation: Tensor | None = None,
        rows: Tensor | None = None,
        masks: Masks | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(eps of theta, eps of theta^g), encoding once where the expert sits in the decoder alone.

        rows   int64 (m,): the samples whose second prediction is wanted, in this order; None: all
        masks  of dropout, as `dropout_masks` draws them, and does by default. Both predictions see the same, so that
               their distance is the expert's doing and nothing else's.
        """
        masks = masks or self.dropout_masks(x_t)
        state = self.encode(x_t, t, y, augmentation, masks)
        eps = self.decode(state)
        with expert_scale(self, 0.0):
            if not all(name.startswith(("up.", "tail.")) for name in expert_weights(self)):
                inputs = (take(v, rows) for v in (x_t, t, y, augmentation))
                return eps, self(*inputs, [take(m, rows) for m in masks])
            return eps, self.decode(state.take(rows))
