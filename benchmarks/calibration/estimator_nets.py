"""Architectures behind calibration rows that no library at hand defines: shapes only, written from their papers.

Where a released network differs in a detail, its published parameter count stands beside ours in the output of
`estimator_graphs.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """The decoding half of a diffusers autoencoder."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.conv(latent))


class CachedDecoder(nn.Module):
    """One step of a transformer decoder with cached keys and values (Whisper, Marian, TrOCR)."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        past: int,
        memory: int,
        ffn: int | None = None,
        cross: int | None = None,
    ) -> None:
        super().__init__()
        self.sizes = (layers, heads, width // heads, past, memory)
        self.embed = nn.Embedding(vocabulary, width)
        ffn = ffn or 4 * width
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    **{name: nn.Linear(width, width) for name in ("q", "k", "v", "o", "cq", "co")},
                    "up": nn.Linear(width, ffn),
                    "down": nn.Linear(ffn, width),
                    **{name: nn.LayerNorm(width) for name in ("n1", "n2", "n3")},
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)

    def example_inputs(self) -> list[Tensor]:
        layers, heads, size, past, memory = self.sizes
        own, other = torch.zeros(layers, 2, 1, heads, past, size), torch.zeros(layers, 2, 1, heads, memory, size)
        return [torch.zeros(1, 1, dtype=torch.long), own, other]

    def forward(self, ids: Tensor, own: Tensor, other: Tensor) -> Tensor:
        x = self.embed(ids)
        _, heads, size, _, _ = self.sizes

        def split(value: Tensor) -> Tensor:
            return value.view(1, 1, heads, size).transpose(1, 2)

        for index, layer in enumerate(self.layers):
            y = layer["n1"](x)
            keys = torch.cat([own[index, 0], split(layer["k"](y))], 2)
            values = torch.cat([own[index, 1], split(layer["v"](y))], 2)
            x = x + layer["o"](F.scaled_dot_product_attention(split(layer["q"](y)), keys, values).reshape(1, 1, -1))
            y = F.scaled_dot_product_attention(split(layer["cq"](layer["n2"](x))), other[index, 0], other[index, 1])
            x = x + layer["co"](y.reshape(1, 1, -1))
            x = x + layer["down"](F.gelu(layer["up"](layer["n3"](x))))
        return self.head(x)


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU (or ReLU)."""

    def __init__(self, i: int, o: int, k: int = 1, s: int = 1, g: int = 1, d: int = 1, act: type = nn.SiLU) -> None:
        super().__init__(nn.Conv2d(i, o, k, s, (k // 2) * d, d, g, bias=False), nn.BatchNorm2d(o), act())


class C2f(nn.Module):
    def __init__(self, i: int, o: int, n: int, shortcut: bool = True) -> None:
        super().__init__()
        self.half, self.shortcut = o // 2, shortcut
        self.first, self.last = Conv(i, o), Conv((2 + n) * self.half, o)
        self.parts = nn.ModuleList(
            nn.Sequential(Conv(self.half, self.half, 3), Conv(self.half, self.half, 3)) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        values = list(self.first(x).chunk(2, 1))
        for part in self.parts:
            y = part(values[-1])
            values.append(values[-1] + y if self.shortcut else y)
        return self.last(torch.cat(values, 1))


class YoloV8(nn.Module):
    """YOLOv8 (width 0.25: n, 0.5: s), with prototypes and coefficients when `masks` are asked for."""

    def __init__(self, width: float = 0.25, classes: int = 80, masks: int = 0) -> None:
        super().__init__()
        a, b, c, d, e = (int(n * width) for n in (64, 128, 256, 512, 1024))
        self.stem = nn.Sequential(Conv(3, a, 3, 2), Conv(a, b, 3, 2), C2f(b, b, 1), Conv(b, c, 3, 2), C2f(c, c, 2))
        self.p4 = nn.Sequential(Conv(c, d, 3, 2), C2f(d, d, 2))
        self.p5 = nn.Sequential(Conv(d, e, 3, 2), C2f(e, e, 1))
        self.spp1, self.spp2 = Conv(e, e // 2), Conv(2 * e, e)
        self.up4, self.up3 = C2f(e + d, d, 1, False), C2f(d + c, c, 1, False)
        self.down3, self.down4 = Conv(c, c, 3, 2), Conv(d, d, 3, 2)
        self.out4, self.out5 = C2f(c + d, d, 1, False), C2f(d + e, e, 1, False)
        box, cls = max(16, c // 4, 64), max(c, min(classes, 100))

        def head(i: int, m: int, o: int) -> nn.Module:
            return nn.Sequential(Conv(i, m, 3), Conv(m, m, 3), nn.Conv2d(m, o, 1))

        self.boxes = nn.ModuleList(head(i, box, 64) for i in (c, d, e))
        self.classes = nn.ModuleList(head(i, cls, classes) for i in (c, d, e))
        self.coefficients = nn.ModuleList(head(i, max(c // 4, masks), masks) for i in (c, d, e) if masks)
        self.proto = (
            nn.Sequential(Conv(c, c, 3), nn.ConvTranspose2d(c, c, 2, 2), Conv(c, c, 3), Conv(c, masks))
            if masks
            else None
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.stem(x)
        p4 = self.p4(p3)
        pools = [self.spp1(self.p5(p4))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        p5 = self.spp2(torch.cat(pools, 1))
        n4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2), p4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), p5], 1))
        levels = [n3, n4, n5]
        boxes = torch.cat([head(v).flatten(2) for head, v in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([head(v).flatten(2) for head, v in zip(self.classes, levels, strict=True)], 2).sigmoid()
        spread = boxes.view(1, 4, 16, -1).transpose(1, 2).softmax(1)
        found = [(spread * x.new_zeros(1, 16, 1, 1)).sum(1), scores]
        if self.proto is not None:
            found.append(self.proto(n3))
            found.append(torch.cat([h(v).flatten(2) for h, v in zip(self.coefficients, levels, strict=True)], 2))
        return found


class UNet(nn.Module):
    """Ronneberger et al. 2015, as milesial's Pytorch-UNet builds it with transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)

        def double(i: int, o: int) -> nn.Module:
            return nn.Sequential(Conv(i, o, 3, act=nn.ReLU), Conv(o, o, 3, act=nn.ReLU))

        self.downs = nn.ModuleList(double(i, o) for i, o in zip((3, *widths), widths, strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, i // 2, 2, 2) for i in widths[:0:-1])
        self.joins = nn.ModuleList(double(i, i // 2) for i in widths[:0:-1])
        self.last = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for index, down in enumerate(self.downs):
            x = down(F.max_pool2d(x, 2) if index else x)
            kept.append(x)
        kept.pop()
        for up, join in zip(self.ups, self.joins, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.last(x)


class RRDBNet(nn.Module):
    """Real-ESRGAN x4: 23 residual-in-residual dense blocks."""

    def __init__(self, blocks: int = 23, width: int = 64, grow: int = 32) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, width, 3, 1, 1), nn.ModuleList()
        for _ in range(3 * blocks):
            self.body.append(
                nn.ModuleList(nn.Conv2d(width + n * grow, grow if n < 4 else width, 3, 1, 1) for n in range(5))
            )
        self.tail = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(4))
        self.last = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.first(x)
        for index, dense in enumerate(self.body):
            outer = x if index % 3 == 0 else outer  # noqa: F821
            values = [x]
            for n, conv in enumerate(dense):
                y = conv(torch.cat(values, 1))
                values.append(F.leaky_relu(y, 0.2) if n < 4 else y)
            x = values[-1] * 0.2 + x
            if index % 3 == 2:
                x = x * 0.2 + outer
        x = self.tail[0](x) + first
        for conv in self.tail[1:3]:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2)), 0.2)
        return self.last(F.leaky_relu(self.tail[3](x), 0.2))


class XLSR(nn.Module):
    """Ayazoglu 2021: four grouped blocks, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.first = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(3, 32, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=4), nn.ReLU(), nn.Conv2d(32, 32, 1)) for _ in range(3)
        )
        self.join, self.last = nn.Conv2d(48, 32, 1), nn.Conv2d(32, 48, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.last(self.join(torch.cat([self.side(x), y], 1)).relu()), 4).clamp(0, 1)


class _Separable(nn.Sequential):
    def __init__(self, i: int, o: int, s: int, d: int = 1) -> None:
        super().__init__(Conv(i, i, 3, s, i, d, nn.ReLU), Conv(i, o, act=nn.ReLU))


MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class YamNet(nn.Sequential):
    """MobileNet v1 on a log-mel patch, 521 classes."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [Conv(1, 32, 3, 2, act=nn.ReLU)]
        width = 32
        for out, stride in MOBILENET_V1:
            layers.append(_Separable(width, out, stride))
            width = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 521), nn.Sigmoid())


class PoseNet(nn.Module):
    """MobileNet v1 at output stride 16 with four heads."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv(3, 32, 3, 2, act=nn.ReLU)]
        width, reached = 32, 2
        for out, stride in MOBILENET_V1:
            step = stride if reached * stride <= 16 else 1
            reached *= step
            layers.append(_Separable(width, out, step))
            width = out
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Conv2d(1024, n, 1) for n in (17, 34, 32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        scores, *rest = (head(x) for head in self.heads)
        scores = scores.sigmoid()
        return [scores, *rest, F.max_pool2d(scores, 3, 1, 1)]


class PSPNet(nn.Module):
    """Pyramid pooling on a dilated ResNet-101, 150 classes."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet101

        net = resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        stem = nn.Sequential(Conv(3, 64, 3, 2, act=nn.ReLU), Conv(64, 64, 3, act=nn.ReLU), Conv(64, 64, 3, act=nn.ReLU))
        self.body = nn.Sequential(stem, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), Conv(2048, 512, act=nn.ReLU)) for n in (1, 2, 3, 6)
        )
        self.last = nn.Sequential(Conv(4096, 512, 3, act=nn.ReLU), nn.Conv2d(512, 150, 1))

    def forward(self, x: Tensor) -> Tensor:
        size, y = x.shape[2:], self.body(x)
        pooled = [F.interpolate(pool(y), size=y.shape[2:], mode="bilinear") for pool in self.pools]
        return F.interpolate(self.last(torch.cat([y, *pooled], 1)), size=size, mode="bilinear")


class DeepLabPlus(nn.Module):
    """DeepLab v3+ on MobileNet v2 at output stride 16, 21 classes."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        layers = list(mobilenet_v2(weights=None).features.children())[:18]
        for layer in layers[14:]:
            for conv in layer.modules():
                if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                    conv.stride, conv.dilation, conv.padding = (1, 1), (2, 2), (2, 2)
        self.low, self.high = nn.Sequential(*layers[:4]), nn.Sequential(*layers[4:])
        self.branches = nn.ModuleList(
            [Conv(320, 256, act=nn.ReLU), *(Conv(320, 256, 3, d=d, act=nn.ReLU) for d in (6, 12, 18))]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Conv(320, 256, act=nn.ReLU))
        self.join, self.skip = Conv(1280, 256, act=nn.ReLU), Conv(24, 48, act=nn.ReLU)
        self.last = nn.Sequential(Conv(304, 256, 3, act=nn.ReLU), Conv(256, 256, 3, act=nn.ReLU), nn.Conv2d(256, 21, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        y = self.high(low)
        pooled = F.interpolate(self.pool(y), size=y.shape[2:], mode="bilinear")
        y = self.join(torch.cat([*(branch(y) for branch in self.branches), pooled], 1))
        y = torch.cat([F.interpolate(y, size=low.shape[2:], mode="bilinear"), self.skip(low)], 1)
        return F.interpolate(self.last(y), size=x.shape[2:], mode="bilinear")


class _IRSE(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        cast = nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o))
        self.short = nn.MaxPool2d(1, s) if i == o else cast
        self.body = nn.Sequential(
            nn.BatchNorm2d(i),
            nn.Conv2d(i, o, 3, 1, 1, bias=False),
            nn.PReLU(o),
            nn.Conv2d(o, o, 3, s, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(o, o // 16, 1), nn.ReLU(), nn.Conv2d(o // 16, o, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.gate(y) + self.short(x)


class IRSE100(nn.Sequential):
    """Improved residual network with squeeze-and-excitation, 100 layers, face embeddings."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [Conv(3, 64, 3, act=nn.ReLU)]
        width = 64
        for out, count in ((64, 3), (128, 13), (256, 30), (512, 3)):
            for index in range(count):
                layers.append(_IRSE(width, out, 2 if index == 0 else 1))
                width = out
        super().__init__(*layers, nn.BatchNorm2d(512), nn.Flatten(), nn.Linear(512 * 49, 512))


class AOTGAN(nn.Module):
    """Aggregated contextual transformations, eight blocks of four dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(4, 64, 7),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(128, 256, 4, 2, 1),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    **{
                        f"r{r}": nn.Sequential(nn.ReflectionPad2d(r), nn.Conv2d(256, 64, 3, dilation=r), nn.ReLU())
                        for r in (1, 2, 4, 8)
                    },
                    "fuse": nn.Conv2d(256, 256, 3, 1, 1),
                    "gate": nn.Conv2d(256, 256, 3, 1, 1),
                }
            )
            for _ in range(8)
        )
        self.decode = nn.ModuleList([nn.Conv2d(256, 128, 3, 1, 1), nn.Conv2d(128, 64, 3, 1, 1)])
        self.last = nn.Conv2d(64, 3, 3, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.encode(torch.cat([x, mask], 1))
        for block in self.blocks:
            y = block["fuse"](torch.cat([block[f"r{r}"](x) for r in (1, 2, 4, 8)], 1))
            gate = block["gate"](x)
            gate = (gate - gate.mean((2, 3), keepdim=True)).sigmoid()
            x = x * (1 - gate) + y * gate
        for conv in self.decode:
            x = conv(F.interpolate(x, scale_factor=2, mode="bilinear")).relu()
        return self.last(x).tanh()


class MidasSmall(nn.Module):
    """MiDaS v2.1 small: EfficientNet-Lite3 features, feature fusion blocks."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.body = timm.create_model("tf_efficientnet_lite3", features_only=True, out_indices=(1, 2, 3, 4))
        widths = ((32, 64), (48, 128), (136, 256), (384, 512))
        self.lift = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1, bias=False) for i, o in widths)
        self.units = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Conv2d(o, o, 3, 1, 1), nn.ReLU(), nn.Conv2d(o, o, 3, 1, 1))
                for _ in range(2)
            )
            for o in (64, 128, 256, 512)
        )
        self.outs = nn.ModuleList(nn.Conv2d(o, max(o // 2, 64), 1) for o in (64, 128, 256, 512))
        self.head = nn.Sequential(
            nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [lift(v) for lift, v in zip(self.lift, self.body(x), strict=True)]
        y: Tensor | None = None
        for index in (3, 2, 1, 0):
            value = levels[index]
            first, second = self.units[index]
            y = value if y is None else y + first(value) + value
            y = self.outs[index](F.interpolate(second(y) + y, scale_factor=2, mode="bilinear"))
        return self.head(F.interpolate(y, scale_factor=2, mode="bilinear"))
