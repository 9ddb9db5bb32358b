"""A small network at work: trained with torch, applied with NumPy, the same whatever the batch and the threads.

Float32 products differ in their last bits with the shape of the batch, and a code may hang on such a bit. So the layers
are applied to blocks of one size, in float64, and only the result is rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantizers.folder import Tensors

_ROWS: Final = 1024

Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Weights (E, D) and biases (E,), ReLU between two layers."""


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """The untrained network of these widths, input first."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        layers += [nn.ReLU()] if index else []
        layers.append(nn.Linear(widths[index], widths[index + 1]))
    return nn.Sequential(*layers)


def layers_of(network: nn.Sequential) -> Layers:
    """The weights of a network that `mlp` made."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]


def apply_layers(layers: Layers, x: NDArray[np.float32], skip: bool = False) -> NDArray[np.float32]:
    """(N, D) -> (N, E) what the network says, with `skip` added to its input."""
    wide = [(weight.T.astype(np.float64), bias.astype(np.float64)) for weight, bias in layers]
    result = np.empty((len(x), layers[-1][0].shape[0]), np.float32)
    block = np.zeros((_ROWS, x.shape[1]))
    for start in range(0, len(x), _ROWS):
        rows = min(_ROWS, len(x) - start)
        block[:rows], block[rows:] = x[start : start + rows], 0
        value = block
        for index, (weight, bias) in enumerate(wide):
            value = (np.maximum(value, 0) if index else value) @ weight + bias
        result[start : start + rows] = (value + block if skip else value)[:rows]
    return result


def name_layers(name: str, layers: Layers) -> Tensors:
    """The layers as tensors of a saved quantizer."""
    return {
        f"{name}_{index}_{part}": tensor
        for index, layer in enumerate(layers)
        for part, tensor in zip(("weight", "bias"), layer, strict=True)
    }


def find_layers(name: str, tensors: Tensors, widths: Sequence[int]) -> Layers:
    """The layers that `name_layers` named.

    Raises:
        KeyError: one is missing. ValueError: one is not of these widths, or not finite.
    """
    layers = [(tensors[f"{name}_{i}_weight"], tensors[f"{name}_{i}_bias"]) for i in range(len(widths) - 1)]
    for (weight, bias), wide, narrow in zip(layers, widths[:-1], widths[1:], strict=True):
        if weight.shape != (narrow, wide) or bias.shape != (narrow,):
            raise ValueError(f"{name}: a layer of shape {weight.shape}, expected {(narrow, wide)}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{name}: a weight is not finite")
    return layers
