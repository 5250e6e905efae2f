"""What the kernels share: tiles with zeros beyond their matrix, what a tile sees, and relu folded into the rounding.

Strides of rows, heads and batches come in units of ALIGN elements, so that the compiler knows the alignment of views
such as one head of a packed [B,N,3,H,8] tensor and loads 16 bytes at a time. FUSED chooses the PTX forms (NVIDIA,
compiled); without it the same arithmetic is written out, for Triton's interpreter and for AMD.
"""

import triton
import triton.language as tl


@triton.jit
def tile_pointers(
    base, start, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr
):
    """Pointers [ROWS,COLUMNS] to the tile whose first row is `start`: 64 bits to its corner, 32 bits within."""
    corner = base + tl.cast(start, tl.int64) * (row_stride * ALIGN)
    return corner + (
        tl.arange(0, ROWS)[:, None] * (row_stride * ALIGN) + tl.arange(0, COLUMNS)[None, :] * column_stride
    )


@triton.jit
def inside(start, stop, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which entries of the tile [ROWS,COLUMNS] at row `start` lie in a matrix of `stop` rows and WIDTH columns."""
    return (start + tl.arange(0, ROWS) < stop)[:, None] & (tl.arange(0, COLUMNS) < WIDTH)[None, :]


@triton.jit
def load_rows(
    base,
    start,
    stop,
    row_stride,
    column_stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Rows `start`.. of a matrix [stop,WIDTH] as a tile [ROWS,COLUMNS], zeros outside; BOUNDED: may pass row `stop`.

    A zero row adds nothing to any product here, so tails need no mask beyond this load.
    """
    pointers = tile_pointers(base, start, row_stride, column_stride, ROWS, COLUMNS, ALIGN)
    if BOUNDED:
        return tl.load(pointers, mask=inside(start, stop, WIDTH, ROWS, COLUMNS), other=0.0)
    if WIDTH != COLUMNS:
        return tl.load(pointers, mask=(tl.arange(0, COLUMNS) < WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def only_seen(scores, keys, positions, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Scores with 0 where the query at a position does not see the key, by selection.

    `keys` and `positions` broadcast against each other. The caller counts both from one point, and shifts the one along
    the first axis to it: a thread holds few rows of a tile and many columns.
    """
    if CAUSAL:
        scores = tl.where(keys <= positions, scores, 0.0)
    if WINDOWED:
        scores = tl.where(keys > positions - window, scores, 0.0)
    return scores


@triton.jit
def keys_of_rows(start, stop, n_keys, offset, window, KEYS: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Keys that the rows start..stop see: (first, full_first, full_last, last), in blocks of KEYS but for `last`.

    Every row sees every key of full_first..full_last, so only the blocks before and after need a mask.
    """
    first = n_keys * 0
    full_first = n_keys * 0
    last = n_keys
    full_last = n_keys // KEYS * KEYS
    if CAUSAL:
        last = tl.minimum(n_keys, stop + offset)
        full_last = tl.minimum(n_keys, start + offset + 1) // KEYS * KEYS
    if WINDOWED:
        first = tl.maximum(start + offset - window + 1, 0) // KEYS * KEYS
        full_first = tl.cdiv(tl.maximum(stop + offset - window, 0), KEYS) * KEYS
        full_last = tl.maximum(full_last, first)
        full_first = tl.minimum(full_first, full_last)
    return first, full_first, full_last, last


@triton.jit
def rows_of_keys(start, stop, n_rows, offset, window, ROWS: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Rows that see the keys start..stop: (first, full_first, full_last, last), in blocks of ROWS but for `last`.

    Every row of full_first..full_last sees every key; without a window full_last = last, tail included.
    """
    first = n_rows * 0
    full_first = n_rows * 0
    last = n_rows
    full_last = n_rows
    if CAUSAL:
        first = tl.maximum(start - offset, 0) // ROWS * ROWS
        full_first = tl.cdiv(tl.maximum(stop - 1 - offset, 0), ROWS) * ROWS
    if WINDOWED:
        last = tl.minimum(n_rows, stop - 1 + window - offset)
        full_last = tl.maximum(start + window - offset, 0) // ROWS * ROWS
        full_last = tl.maximum(tl.minimum(full_last, last), full_first)
    return first, full_first, full_last, last


@triton.jit
def relu_as(scores, DTYPE: tl.constexpr, FUSED: tl.constexpr):
    """relu(scores) rounded to DTYPE, NaN kept. FUSED: one `cvt` with its own relu for two scores."""
    if FUSED and tl.bfloat16 == DTYPE:
        return tl.inline_asm_elementwise(
            "cvt.rn.relu.bf16x2.f32 $0, $2, $1;", "=r,r,r", [scores], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif FUSED and tl.float16 == DTYPE:  # noqa: RET505
        return tl.inline_asm_elementwise(
            "cvt.rn.relu.f16x2.f32 $0, $2, $1;", "=r,r,r", [scores], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        return tl.maximum(scores, 0.0, propagate_nan=tl.PropagateNan.ALL).to(DTYPE)


@triton.jit
def gated(weights, gradient, DTYPE: tl.constexpr, FUSED: tl.constexpr):
    """`gradient` rounded to DTYPE where a weight (of `relu_as`) is not 0, else 0: the derivative of relu, by selection.

    FUSED compares two weights at once as halves: bits of a nonnegative bfloat16 that are not all 0 are a positive half,
    infinity or NaN, and `gtu` takes all three.
    """
    if FUSED and tl.bfloat16 == DTYPE:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 zero, open, pair;
            mov.b32 zero, 0;
            set.gtu.u32.f16x2 open, $1, zero;
            cvt.rn.bf16x2.f32 pair, $3, $2;
            and.b32 $0, pair, open; }""",
            "=r,r,r,r",
            [weights, gradient],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    elif FUSED and tl.float16 == DTYPE:  # noqa: RET505
        return tl.inline_asm_elementwise(
            """{ .reg .b32 zero, open, pair;
            mov.b32 zero, 0;
            set.gtu.u32.f16x2 open, $1, zero;
            cvt.rn.f16x2.f32 pair, $3, $2;
            and.b32 $0, pair, open; }""",
            "=r,r,r,r",
            [weights, gradient],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    else:
        return tl.where(weights == 0, 0.0, gradient).to(DTYPE)
