"""The reference networks of MLPerf Tiny v1 and the kinds of network that the GEM paper reports.

Each is built around the activation that a factory makes: `make` is called once for every place that has one.
MLPerf Tiny's are written for TensorFlow, whose "same" padding of a stride of 2 is not symmetric.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[[], nn.Module]


def parameters(model: nn.Module) -> int:
    """How many numbers are trained; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


# Digits, 28x28


def mlp(make: Make) -> nn.Sequential:
    """784-64-32-10: 52,650 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), make(), nn.Linear(64, 32), make(), nn.Linear(32, 10))


# MLPerf Tiny


def resnet8(make: Make) -> nn.Sequential:
    """Image classification, [3, 32, 32] to 10 classes: 78,666 parameters."""
    stages = [Residual(make, 16, 16, 1), Residual(make, 16, 32, 2), Residual(make, 32, 64, 2)]
    stem = _normalized(make, nn.Conv2d(3, 16, 3, padding=1))
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def ds_cnn(make: Make) -> nn.Sequential:
    """Keyword spotting, [1, 49, 10] to 12 classes: 24,908 parameters."""
    layers = [nn.ZeroPad2d((1, 1, 4, 5)), *_normalized(make, nn.Conv2d(1, 64, (10, 4), 2))]
    for _ in range(4):
        layers += _separable(make, 64, 64, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


def mobilenet(make: Make) -> nn.Sequential:
    """MobileNetV1 0.25 for visual wake words, [3, 96, 96] to 2 classes: 221,794 parameters."""
    layers = [nn.ZeroPad2d((0, 1, 0, 1)), *_normalized(make, nn.Conv2d(3, 8, 3, 2))]
    before = 8
    for stride, after in [(1, 16), (2, 32), (1, 32), (2, 64), (1, 64), (2, 128), *[(1, 128)] * 5, (2, 256), (1, 256)]:
        layers += _separable(make, before, after, stride)
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def autoencoder(make: Make) -> nn.Sequential:
    """Anomaly detection, 640 numbers through 8 and back: 269,992 parameters."""
    sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after, eps=1e-3), make()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the size changes."""

    def __init__(self, make: Make, before: int, after: int, stride: int) -> None:
        super().__init__()
        first = [*_half(stride), nn.Conv2d(before, after, 3, stride, 1 if stride == 1 else 0)]
        self.first = nn.Sequential(*first, nn.BatchNorm2d(after, eps=1e-3), make())
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after, eps=1e-3))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride)
        self.activation = make()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


def _normalized(make: Make, convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels, eps=1e-3), make()]


def _separable(make: Make, before: int, after: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution."""
    depthwise = nn.Conv2d(before, before, 3, stride, 1 if stride == 1 else 0, groups=before)
    return [*_half(stride), *_normalized(make, depthwise), *_normalized(make, nn.Conv2d(before, after, 1))]


def _half(stride: int) -> list[nn.Module]:
    """TensorFlow's "same" padding of a 3x3 with a stride of 2 on an even size."""
    return [nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []


# The paper's kinds


def resnet56(make: Make) -> nn.Sequential:
    """The ResNet-56 of CIFAR-10: three stages of nine blocks, 859,770 parameters."""
    stages = []
    for before, after in ((16, 16), (16, 32), (32, 64)):
        stages += [Residual(make, before, after, after // before), *(Residual(make, after, after, 1) for _ in range(8))]
    stem = _normalized(make, nn.Conv2d(3, 16, 3, padding=1))
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Attention(nn.Module):
    """Multi-head self-attention."""

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
    """Attention and two dense layers, each beside a shortcut; normalized first, or as BERT does it, afterwards."""

    def __init__(self, make: Make, width: int, heads: int, *, causal: bool = False, norm_first: bool = True) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), make(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class ViT(nn.Module):
    """Images [batch, channels, size, size] to classes."""

    def __init__(
        self, make: Make, *, channels: int, size: int, patch: int, width: int, layers: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(make, width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT(nn.Module):
    """Tokens [batch, length] to what comes after each of them. The last layer's weight is the token embedding's."""

    def __init__(self, make: Make, *, vocabulary: int, longest: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = _embeddings(vocabulary, longest, width)
        self.blocks = nn.Sequential(*(Block(make, width, heads, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


class BERT(nn.Module):
    """Tokens [batch, length] to what stood in each place before some were masked; one segment."""

    def __init__(self, make: Make, *, vocabulary: int, longest: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = _embeddings(vocabulary, longest, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(make, width, heads, norm_first=False) for _ in range(layers)))
        self.transform = nn.Sequential(nn.Linear(width, width), make(), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.transform(self.blocks(self.norm(x))))


def _embeddings(vocabulary: int, longest: int, width: int) -> tuple[nn.Embedding, nn.Embedding]:
    pair = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
    for embedding in pair:
        nn.init.normal_(embedding.weight, std=0.02)
    return pair


def vit_small(make: Make) -> ViT:
    """ViT-S/16 for [3, 224, 224] and 1,000 classes: 22.0 million parameters."""
    return ViT(make, channels=3, size=224, patch=16, width=384, layers=12, heads=6, classes=1000)


def gpt2(make: Make) -> GPT:
    """GPT-2's smallest: 124.4 million parameters."""
    return GPT(make, vocabulary=50257, longest=1024, width=768, layers=12, heads=12)


def bert_small(make: Make) -> BERT:
    """BERT-small, 4 layers of 512: 28.8 million parameters."""
    return BERT(make, vocabulary=30522, longest=512, width=512, layers=4, heads=8)
