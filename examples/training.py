"""How the examples train: Adam, a rate that rises for a tenth of the steps and falls to zero, gradients clipped."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, rate: float) -> None:
    """Train the model, and leave it in eval mode. loss: that of the model on a new batch each time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
