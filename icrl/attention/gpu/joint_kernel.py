"""Backward pass of short sequences in one launch: a program per (batch, key head) computes all of dQ, dK and dV.

The equations of `icrl.attention.gpu.split_kernels`, with five products a tile instead of seven. dK and dV of a block of
keys stay in registers; dQ of a tile of rows is summed over the blocks of keys in float32 memory that only this program
touches, in one order: deterministic without atomics.
"""

import triton
import triton.language as tl

from icrl.attention.gpu.pieces import inside, load_rows, rows_of_keys, tile_pointers
from icrl.attention.gpu.split_kernels import add_rows

# arguments of one kind share a line
# fmt: off


@triton.jit
def _visit(
    dk, dv, k, v, Q, Scaled, DQ, Partial, row, start, n_queries, n_keys, offset, window,
    q_row, q_column, scaled_row, dq_row, partial_row,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, SHRINK: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    FUSED: tl.constexpr, ON_DIAGONAL: tl.constexpr, MASKED: tl.constexpr,
):
    """`add_rows`, and dS k onto the dQ of the rows: into `Partial`, or into `DQ` at the last block that they see.

    ON_DIAGONAL: that block is always one that needs a mask.
    """
    dk, dv, d_scores = add_rows(
        dk, dv, k, v, Q, Scaled, row, start, n_queries, offset, window, q_row, q_column,
        scaled_row, D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, MASKED,
    )
    first = n_keys * 0
    last = n_keys - 1
    if WINDOWED:
        first = tl.minimum(tl.maximum(row + offset - window + 1, 0), last) // KEYS * KEYS
    if CAUSAL:
        last = tl.minimum(row + ROWS - 1 + offset, last)
    last = last // KEYS * KEYS
    here = inside(row, n_queries, D, ROWS, D_TILE)
    partial = tile_pointers(Partial, row, partial_row, 1, ROWS, D_TILE, ALIGN)
    dq = tl.load(partial, mask=here & (start > first), other=0.0)
    dq = tl.dot(tl.trans(d_scores), k, dq, input_precision="ieee")
    tl.store(partial, dq, mask=here & (start < last))
    if MASKED or not ON_DIAGONAL:  # predicated, not branched: Triton 3.6 cannot pipeline a loop with this branch
        pointers = tile_pointers(DQ, row, dq_row, 1, ROWS, D_TILE, ALIGN)
        tl.store(pointers, (dq * (1.0 / SHRINK)).to(DQ.dtype.element_ty), mask=here & (start >= last))
    return dk, dv


@triton.jit(do_not_specialize=["n_queries", "n_keys", "offset", "window", "heads", "group"])
def joint_kernel(
    Q, K, V, Grad, Factor, DQ, DK, DV, Scaled, Partial, Documents,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, grad_batch, grad_head, grad_row, grad_column,
    dq_batch, dq_head, dq_row, dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    scaled_batch, scaled_head, scaled_row, partial_batch, partial_head, partial_row,
    n_queries, n_keys, offset, window, heads, group,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, SHRINK: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    PACKED: tl.constexpr, FUSED: tl.constexpr, ON_DIAGONAL: tl.constexpr,
):
    """Program p: key head p % heads of batch entry (or document) p // heads."""
    program = tl.program_id(0)
    batch = program // heads
    key_head = (program % heads).to(tl.int64)
    first_token = batch * 0
    if PACKED:
        first_token = tl.load(Documents + batch)
        n_queries = tl.load(Documents + batch + 1) - first_token
        n_keys = n_queries
        batch = batch * 0
    token, batch = first_token.to(tl.int64), batch.to(tl.int64)
    Q += batch * q_batch * ALIGN + token * (q_row * ALIGN)
    DQ += batch * dq_batch * ALIGN + token * (dq_row * ALIGN)
    Grad += batch * grad_batch * ALIGN + token * (grad_row * ALIGN)
    Scaled += batch * scaled_batch * ALIGN + token * (scaled_row * ALIGN)
    Partial += batch * partial_batch * ALIGN + token * (partial_row * ALIGN)
    K += batch * k_batch * ALIGN + key_head * (tl.cast(k_head, tl.int64) * ALIGN) + token * (k_row * ALIGN)
    V += batch * v_batch * ALIGN + key_head * (tl.cast(v_head, tl.int64) * ALIGN) + token * (v_row * ALIGN)
    DK += batch * dk_batch * ALIGN + key_head * (tl.cast(dk_head, tl.int64) * ALIGN) + token * (dk_row * ALIGN)
    DV += batch * dv_batch * ALIGN + key_head * (tl.cast(dv_head, tl.int64) * ALIGN) + token * (dv_row * ALIGN)

    for member in range(group):
        head = key_head * group + member
        for row in range(0, n_queries, ROWS):
            rows = row + tl.arange(0, ROWS)
            factor = tl.load(Factor + first_token + rows, mask=rows < n_queries, other=0.0)
            Grad_head = Grad + head * (tl.cast(grad_head, tl.int64) * ALIGN)
            grad = load_rows(Grad_head, row, n_queries, grad_row, grad_column, E, ROWS, E_TILE, ALIGN, True)
            grad = (grad.to(tl.float32) * factor[:, None]).to(Scaled.dtype.element_ty)
            Scaled_head = Scaled + head * (tl.cast(scaled_head, tl.int64) * ALIGN)
            pointers = tile_pointers(Scaled_head, row, scaled_row, 1, ROWS, E_TILE, ALIGN)
            tl.store(pointers, grad, mask=inside(row, n_queries, E, ROWS, E_TILE))

    for start in range(0, n_keys, KEYS):
        tl.debug_barrier()  # what the program's threads wrote, `Scaled` and `Partial`, is read by others of them
        k = load_rows(K, start, n_keys, k_row, k_column, D, KEYS, D_TILE, ALIGN, True)
        v = load_rows(V, start, n_keys, v_row, v_column, E, KEYS, E_TILE, ALIGN, True)
        if SHRINK != 1.0:
            k = (k * SHRINK).to(k.dtype)
        first, full_first, full_last, last = rows_of_keys(
            start, start + KEYS, n_queries, offset, window, ROWS, CAUSAL, WINDOWED
        )
        dk = tl.zeros([KEYS, D_TILE], tl.float32)
        dv = tl.zeros([KEYS, E_TILE], tl.float32)
        for member in range(group):
            head = key_head * group + member
            Q_head = Q + head * (tl.cast(q_head, tl.int64) * ALIGN)
            Scaled_head = Scaled + head * (tl.cast(scaled_head, tl.int64) * ALIGN)
            DQ_head = DQ + head * (tl.cast(dq_head, tl.int64) * ALIGN)
            Partial_head = Partial + head * (tl.cast(partial_head, tl.int64) * ALIGN)
            if CAUSAL:
                for row in tl.range(first, tl.minimum(full_first, last), ROWS):
                    dk, dv = _visit(
                        dk, dv, k, v, Q_head, Scaled_head, DQ_head, Partial_head, row, start, n_queries, n_keys,
                        offset, window, q_row, q_column, scaled_row, dq_row, partial_row, D, E, D_TILE, E_TILE,
                        ROWS, KEYS, ALIGN, SHRINK, CAUSAL, WINDOWED, FUSED, ON_DIAGONAL, True,
                    )
            for row in tl.range(full_first, full_last, ROWS):
                dk, dv = _visit(
                    dk, dv, k, v, Q_head, Scaled_head, DQ_head, Partial_head, row, start, n_queries, n_keys,
                    offset, window, q_row, q_column, scaled_row, dq_row, partial_row, D, E, D_TILE, E_TILE,
                    ROWS, KEYS, ALIGN, SHRINK, CAUSAL, WINDOWED, FUSED, ON_DIAGONAL, False,
                )
            if WINDOWED:
                for row in tl.range(full_last, last, ROWS):
                    dk, dv = _visit(
                        dk, dv, k, v, Q_head, Scaled_head, DQ_head, Partial_head, row, start, n_queries, n_keys,
                        offset, window, q_row, q_column, scaled_row, dq_row, partial_row, D, E, D_TILE, E_TILE,
                        ROWS, KEYS, ALIGN, SHRINK, CAUSAL, WINDOWED, FUSED, ON_DIAGONAL, True,
                    )
        here = inside(start, n_keys, D, KEYS, D_TILE)
        tl.store(tile_pointers(DK, start, dk_row, 1, KEYS, D_TILE, ALIGN), dk.to(DK.dtype.element_ty), mask=here)
        dv = dv * (1.0 / SHRINK)
        here = inside(start, n_keys, E, KEYS, E_TILE)
        tl.store(tile_pointers(DV, start, dv_row, 1, KEYS, E_TILE, ALIGN), dv.to(DV.dtype.element_ty), mask=here)
