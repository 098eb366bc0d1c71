"""MXFP4, the format in which gpt-oss publishes its experts: 4-bit floats that share a scale in blocks of 32.

Format: OCP Microscaling Formats (MX) v1.0, section 5.3: E2M1 elements, one E8M0 scale a block. A tensor `x` of
[E, in, out] is stored as `x_blocks`, uint8 [E, out, in / 32, 16], whose low nibbles come first, and as `x_scales`,
uint8 [E, out, in / 32].
"""

from __future__ import annotations

import numpy as np

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK = 32
_BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], np.float32)


def unpacked_shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape [E, in, out] that blocks of shape [E, out, in / 32, 16] stand for."""
    experts, outputs, count, _ = blocks
    return experts, count * BLOCK, outputs


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the values.

    Args:
        blocks: [E, out, in / 32, 16] uint8, two elements a byte.
        scales: [E, out, in / 32] uint8, biased exponents.

    Returns:
        [E, in, out] float32.
    """
    experts, outputs, count, size = blocks.shape
    values = np.empty((experts, outputs, count, 2 * size), np.float32)
    values[..., 0::2] = _VALUES[blocks & 0x0F]
    values[..., 1::2] = _VALUES[blocks >> 4]
    np.ldexp(values, (scales.astype(np.int32) - _BIAS)[..., None], out=values)
    return values.reshape(experts, outputs, -1).swapaxes(1, 2)
