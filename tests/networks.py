"""Small networks of the kinds people deploy, each built around the activation that a factory makes.

make: called once for every place of the network that has an activation. Weights come from a fixed seed, in
eval mode, with batch norm statistics that are not the identity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[[], nn.Module]


def mlp(make: Make) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), make(), nn.Linear(32, 24), make(), nn.Linear(24, 5))


def cnn(make: Make) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), make(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), make(), nn.AvgPool2d(2)
    )
    return nn.Sequential(features, nn.Flatten(), nn.Linear(16 * 4 * 4, 10))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, make: Make, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.act1 = make()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.act2 = make()
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))


def resnet20(make: Make) -> nn.Module:
    """The ResNet-20 of CIFAR-10: three stages of three blocks."""
    stages = []
    for before, after in ((16, 16), (16, 32), (32, 64)):
        first = Residual(make, before, after, after // before)
        stages.append(nn.Sequential(first, Residual(make, after, after, 1), Residual(make, after, after, 1)))
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), make())
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet8(make: Make) -> nn.Module:
    """The ResNet-8 of MLPerf Tiny: one block each of 16, 32 and 64 channels."""
    stages = [Residual(make, before, after, after // before) for before, after in ((16, 16), (16, 32), (32, 64))]
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), make())
    return nn.Sequential(stem, *stages, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


def ds_cnn(make: Make) -> nn.Module:
    """The DS-CNN of MLPerf Tiny: keywords from 49 rows of 10 coefficients."""

    def block() -> list[nn.Module]:
        depthwise = [nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), make()]
        return [*depthwise, nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), make()]

    stem = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2, bias=False), nn.BatchNorm2d(64), make()]
    blocks = [layer for _ in range(4) for layer in block()]
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


def mobilenet(make: Make) -> nn.Module:
    """Depthwise separable convolutions with an inverted bottleneck."""

    def block(before: int, after: int, stride: int) -> nn.Module:
        wide = 4 * before
        layers = [nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), make()]
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), make()]
        return nn.Sequential(*layers, nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after))

    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), make())
    return nn.Sequential(
        stem, block(8, 8, 1), block(8, 16, 2), block(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)
    )


class Attention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A transformer's block, layer norm first."""

    def __init__(self, make: Make, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), make(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, make: Make, width: int = 32, size: int = 16, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(make, width, 4, causal=False) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class GPT(nn.Module):
    """The output layer's weight is the token embedding's."""

    def __init__(self, make: Make, vocabulary: int = 50, width: int = 32, longest: int = 24) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Block(make, width, 2, causal=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Conv1d(nn.Module):
    """Free in time: the sequence may have any length."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 12, 5, padding=2), make(), nn.Conv1d(12, 12, 3, padding=1), make())
        self.head = nn.Linear(12, 3)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.layers(signal).mean(dim=2))


class TwoInputs(nn.Module):
    """An image and numbers beside it; a dict of outputs."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 4, 3), make(), nn.Flatten())
        self.numbers = nn.Sequential(nn.Linear(3, 8), make())
        self.head = nn.Linear(4 * 36 + 8, 4)

    def forward(self, picture: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.image(picture), self.numbers(numbers)], dim=1)
        return {"logits": self.head(both), "features": both}


@dataclass(frozen=True)
class Network:
    """How one is built, what it takes, and what may vary.

    shapes: input sizes without the batch; token inputs are int64. free: input -> {axis: name} beyond the batch.
    """

    build: Callable[[Make], nn.Module]
    shapes: dict[str, tuple[int, ...]]
    activations: int
    free: dict[str, dict[int, str]] = field(default_factory=dict)
    below: int = 0  # integers below this, instead of floats

    def model(self, make: Make, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build(make)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    def inputs(self, batch: int = 2, length: int | None = None, seed: int = 1) -> dict[str, Tensor]:
        """Inputs by name; length replaces the free dimension beyond the batch."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, shape in self.shapes.items():
            sizes = [batch, *shape]
            if length is not None:
                for axis in self.free.get(name, ()):
                    sizes[axis] = length
            if self.below:
                made[name] = torch.randint(0, self.below, sizes, generator=generator)
            else:
                made[name] = torch.randn(sizes, generator=generator)
        return made

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", **self.free.get(name, {})} for name in self.shapes}


NETWORKS = {
    "mlp": Network(mlp, {"input": (12,)}, 2),
    "cnn": Network(cnn, {"input": (3, 16, 16)}, 2),
    "resnet20": Network(resnet20, {"input": (3, 32, 32)}, 19),
    "mobilenet": Network(mobilenet, {"input": (3, 32, 32)}, 7),
    "vit": Network(ViT, {"image": (3, 16, 16)}, 2),
    "gpt": Network(GPT, {"tokens": (9,)}, 2, {"tokens": {1: "sequence"}}, below=50),
    "conv1d": Network(Conv1d, {"signal": (4, 20)}, 2, {"signal": {2: "time"}}),
    "two inputs": Network(TwoInputs, {"picture": (1, 8, 8), "numbers": (3,)}, 2),
}

MLPERF_TINY = {
    "resnet8": Network(resnet8, {"input": (3, 32, 32)}, 7),
    "ds-cnn": Network(ds_cnn, {"input": (1, 49, 10)}, 9),
}
