"""What a linear takes in an ONNX file and at run time, from its shape alone: bytes, nodes, seconds. Needs no onnx library.

The model of time was fitted to onnxruntime 1.32 on one x86 core, 4 bits, groups of 32, 64 and 128, shapes from (192, 576)
to (5632, 2048): within 13 % in the median, 60 % at worst (the smallest). Only ratios should be relied on. Microseconds for
one row of activations, as measured::

    shape (OC, IC)     MatMulNBits   split form, group 32     64    128
    (576, 576)                  14                     98     54     35
    (1536, 576)                 29                    269    137     72
    (5632, 2048)               390                   1880    780    700

A whole SmolLM2-135M (head and attention included) takes 2.0 times as long all per-IC at group 64 as all per-OC, 2.9 at 32.
"""

from __future__ import annotations

from math import prod

from quantize.grids.int_affine import IntAffine
from quantize.grids.levels import OWN, Levels
from quantize.turn import Turn
from quantize.types import Axis, Grid

FASTEST_2_BIT_BLOCK = 128  # onnxruntime's 2-bit MatMulNBits is 100 times slower at 256 and refuses more
SMALLEST_FAST_BLOCK = 32
SPLIT_K_BLOCK = 32  # the kernel rounds activations to 8 bits per block: the smallest fast one is the most accurate
SMALLEST_STACK_BLOCK = 16  # of QMoE
SCALED_VALUES = 1 << 15  # most values of x * s per token and Mul of the split form: 64 MiB for a prompt of 512 tokens

TILE, BLOCK = 16, 32  # output and input channels that MatMulAdaDim's kernels take at a time

RUNNING_SCALE_BYTES = 4  # onnxruntime widens scales when it loads them

COLUMNS_NODES = 3  # of input channels in float16: Gather and MatMul of them, and the Sum with what the codes give
STATIC_NODES = 2  # that run for a linear of static activations: QuantizeLinear, which others share, and MatMulIntegerToFloat

SECONDS_PER_BYTE = 5.3e-11
SECONDS_PER_NODE = 7.4e-7
SECONDS_PER_NODE_AND_CHANNEL = 1.9e-9  # a node of the split form scales, copies and rounds all input channels
# And row of a prompt, of MatMulNBits beyond integers under one scale: 128 rows of (1536, 576) and (5632, 2048) took 8.8 and 108
# milliseconds for 2.1 and 47.
SECONDS_PER_WEIGHT_IN_BLOCKS = 5e-11
SECONDS_PER_TURNED_CHANNEL = 2.1e-11  # and row of a factor: both products of 5,632 channels took 18 microseconds in numpy


def stored_bits(bits: int) -> int:
    """Width of codes in MatMulNBits and GatherBlockQuantized, and of MatMulAdaDim's zero points: 3 bits ride in 4."""
    return 4 if bits == 3 else bits


def packed_size(count: int, bits: int) -> int:
    """Bytes of a packed row of ``count`` values."""
    return -(-count * bits // 8)


def scale_bytes(grid: Grid) -> int:
    """Bytes of one scale in the file."""
    if isinstance(grid, Levels):
        return 2
    assert isinstance(grid, IntAffine), grid
    return grid.scale_bytes


def block_size(grid: Grid, length: int) -> int:
    """The block that MatMulNBits stores rows of ``length`` in: the group, or a part of it that takes fewer bytes.

    Codes are padded to whole blocks, so one block of 1024 for a whole channel of 576 would cost 3 bits a weight more than
    blocks of 64 that repeat its scale.
    """
    width, group_size = stored_bits(grid.bits), grid.group_size
    limit = min(group_size, FASTEST_2_BIT_BLOCK) if width == 2 else group_size
    sizes = [limit >> shift for shift in range(limit.bit_length()) if limit >> shift >= min(group_size, SMALLEST_FAST_BLOCK)]
    return min(sizes, key=lambda size: -(-length // size) * (size * width + 8 * scale_bytes(grid) + width))


def stack_bits(grid: Grid) -> int:
    """Width of codes in QMoE: what is exact there at 4 bits is not at 2, so these ride in 4."""
    return max(4, stored_bits(grid.bits))


def stack_block(group_size: int, *lengths: int) -> int:
    """The block that QMoE stores rows of ``lengths`` in: the group, or the largest part of it that fits them evenly."""
    return min(group_size, *(length & -length for length in lengths))


def stack_bytes(grid: Grid, shape: tuple[int, ...]) -> int:
    """Bytes of a stack [experts, OC, IC] in QMoE beside one that is stored alike."""
    width, size = stack_bits(grid), stack_block(grid.group_size, shape[-1])
    blocks = shape[-1] // size
    zeros = 0 if grid.symmetric and width == grid.bits else packed_size(blocks, width)
    return prod(shape[:-1]) * (blocks * (size * width // 8 + scale_bytes(grid)) + zeros)


def groups_per_mul(groups: int, ic: int) -> int:
    """How many of ``groups`` one Mul of the split form scales the activations for, evenly spread over the Muls."""
    muls = -(-groups // max(1, SCALED_VALUES // ic))
    return -(-groups // muls)


def linear_nodes(grid: Grid, axis: Axis, shape: tuple[int, int]) -> int:
    """Nodes that run for one linear (OC, IC) on stock onnxruntime, after it has folded those on constants."""
    if axis is Axis.PER_OC:
        return 1
    oc, ic = shape
    groups = -(-oc // grid.group_size)
    step = groups_per_mul(groups, ic)
    splits = groups // step + (groups % step > 1) if step > 1 else 0
    zeros = 0 if grid.symmetric else 3 if oc > grid.group_size and oc % grid.group_size else 5
    return groups + -(-groups // step) + splits + 2 + zeros


def linear_bytes(grid: Grid, axis: Axis, shape: tuple[int, int]) -> int:
    """Bytes of one linear's initializers on stock onnxruntime, without those that linears of one shape share."""
    return _linear_bytes(grid, axis, shape, scale_bytes(grid))


def static_bytes(shape: tuple[int, int]) -> int:
    """Bytes of a linear of static activations: a byte a weight, and a float32 scale an output channel."""
    oc, ic = shape
    return oc * (ic + RUNNING_SCALE_BYTES)


def columns_bytes(count: int, shape: tuple[int, int]) -> int:
    """Bytes of ``count`` input channels of a linear (OC, IC) in float16, and of their numbers."""
    return count * (2 * shape[0] + 4)


def columns_seconds(count: int, shape: tuple[int, int]) -> float:
    """Estimated seconds to multiply those of one row of activations: in float32."""
    return SECONDS_PER_BYTE * RUNNING_SCALE_BYTES * count * shape[0] + SECONDS_PER_NODE * COLUMNS_NODES


def _linear_bytes(grid: Grid, axis: Axis, shape: tuple[int, int], per_scale: int) -> int:
    oc, ic = shape
    bits = stored_bits(grid.bits)
    if axis is Axis.PER_OC:
        size = block_size(grid, ic)
        blocks = -(-ic // size)
        zeros = 0 if grid.symmetric and bits == grid.bits else packed_size(blocks, bits)
        return oc * (blocks * (size * bits // 8 + per_scale) + zeros)
    groups = -(-oc // grid.group_size)
    codes = oc * packed_size(-(-ic // SPLIT_K_BLOCK) * SPLIT_K_BLOCK, bits)
    return codes + groups * ic * per_scale + (0 if grid.symmetric else packed_size(groups * ic, max(4, bits)))


def linear_seconds(grid: Grid, axis: Axis, shape: tuple[int, int]) -> float:
    """Estimated seconds to multiply one row of activations on stock onnxruntime at accuracy level 4."""
    nodes = linear_nodes(grid, axis, shape)
    seconds = SECONDS_PER_BYTE * _linear_bytes(grid, axis, shape, RUNNING_SCALE_BYTES) + SECONDS_PER_NODE * nodes
    return seconds + (SECONDS_PER_NODE_AND_CHANNEL * nodes * shape[1] if axis is Axis.PER_IC else 0)


def tile_shapes(grid: Grid, axis: Axis, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Of MatMulAdaDim's codes (bytes), scales and zero points (bytes) for a linear (OC, IC); MatMulLevels has the first two."""
    oc, ic = shape
    tiles, blocks, width = -(-oc // TILE), -(-ic // BLOCK), stored_bits(grid.bits)
    groups = -(-(ic if axis is Axis.PER_OC else oc) // grid.group_size)
    codes = (tiles, blocks * BLOCK * TILE * grid.bits // 8)
    if axis is Axis.PER_OC:
        words = -(-groups * width // 32)
        return codes, (tiles, groups * TILE), (1, words * 4) if grid.symmetric else (tiles, words * TILE * 4)
    return codes, (groups, blocks * BLOCK), (groups, 1 if grid.symmetric else blocks * BLOCK * width // 8)


def tile_bytes(grid: Grid, axis: Axis, shape: tuple[int, int]) -> int:
    """Bytes of MatMulAdaDim's or MatMulLevels' initializers for a linear (OC, IC); levels of a named grid are shared by all."""
    (tiles, code_bytes), (rows, scales), (zero_rows, zero_bytes) = tile_shapes(grid, axis, shape)
    last = zero_rows * zero_bytes
    if isinstance(grid, Levels):
        last = sum(map(len, grid.levels)) if grid.name == OWN else 0
    return tiles * code_bytes + rows * scales * scale_bytes(grid) + last


def turn_seconds(turn: Turn, channels: int) -> float:
    """Estimated seconds to turn one row of so many activations."""
    return SECONDS_PER_NODE + SECONDS_PER_TURNED_CHANNEL * channels * turn.per_channel


def gather_bytes(grid: Grid, shape: tuple[int, int], tied: bool) -> int:
    """What an embedding takes beyond a linear of its shape: a byte for each zero point, and those of the head once more."""
    blocks = -(-shape[1] // block_size(grid, shape[1]))
    if grid.symmetric:
        return 0
    packed = packed_size(blocks, grid.bits)
    return shape[0] * (blocks if tied and grid.bits < 8 else blocks - packed)
