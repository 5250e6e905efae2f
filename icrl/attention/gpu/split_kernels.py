"""Backward pass of long sequences, two kernels without atomics: dQ by query rows, dK and dV by keys.

    dV_j = sum_i relu(s_ij) f_i dO_i      dS_ij = [s_ij > 0] <f_i dO_i, v_j>      dQ_i = sum_j dS_ij k_j
                                                                                 dK_j = sum_i dS_ij q_i
with s_ij = <q_i, k_j> and f_i the factor of a row. The dQ kernel folds f into dO once and leaves it for the other.
Scores are computed anew from q and k: nothing but the inputs was saved, and there is no row sum to subtract.
"""

import triton
import triton.language as tl

from icrl.attention.gpu.pieces import (
    gated,
    inside,
    keys_of_rows,
    load_rows,
    only_seen,
    relu_as,
    rows_of_keys,
    tile_pointers,
)

# arguments of one kind share a line
# fmt: off


@triton.jit
def _add_keys(
    dq, q, grad, K, V, start, row, n_keys, offset, window,
    k_row, k_column, v_row, v_column,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    FUSED: tl.constexpr, MASKED: tl.constexpr,
):
    """dq + dS k over one block of keys."""
    k = load_rows(K, start, n_keys, k_row, k_column, D, KEYS, D_TILE, ALIGN, MASKED)
    v = load_rows(V, start, n_keys, v_row, v_column, E, KEYS, E_TILE, ALIGN, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        positions = (row + offset - start + tl.arange(0, ROWS))[:, None]
        scores = only_seen(scores, tl.arange(0, KEYS)[None, :], positions, window, CAUSAL, WINDOWED)
    weights = relu_as(scores, k.dtype, FUSED)
    d_scores = gated(weights, tl.dot(grad, tl.trans(v), input_precision="ieee"), k.dtype, FUSED)
    return tl.dot(d_scores, k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=["n_queries", "n_keys", "offset", "window", "tiles", "heads", "group"])
def dq_kernel(
    Q, K, V, Grad, Factor, DQ, Scaled, Documents,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, grad_batch, grad_head, grad_row, grad_column,
    dq_batch, dq_head, dq_row, scaled_batch, scaled_head, scaled_row,
    n_queries, n_keys, offset, window, tiles, heads, group,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, SHRINK: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, PACKED: tl.constexpr, FUSED: tl.constexpr,
):
    """Program p: tile tiles-1 - p % tiles of pair p // tiles of batch (or document) and head; writes dQ and f dO."""
    program = tl.program_id(0)
    pair = program // tiles
    batch = pair // heads
    head = (pair % heads).to(tl.int64)
    row = (tiles - 1 - program % tiles) * ROWS
    first_token = batch * 0
    if PACKED:
        first_token = tl.load(Documents + batch)
        n_queries = tl.load(Documents + batch + 1) - first_token
        n_keys = n_queries
        batch = batch * 0
    token, batch = first_token.to(tl.int64), batch.to(tl.int64)
    key_head = head // group
    Q += batch * q_batch * ALIGN + head * q_head * ALIGN + token * (q_row * ALIGN)
    DQ += batch * dq_batch * ALIGN + head * dq_head * ALIGN + token * (dq_row * ALIGN)
    Grad += batch * grad_batch * ALIGN + head * grad_head * ALIGN + token * (grad_row * ALIGN)
    Scaled += batch * scaled_batch * ALIGN + head * scaled_head * ALIGN + token * (scaled_row * ALIGN)
    K += batch * k_batch * ALIGN + key_head * k_head * ALIGN + token * (k_row * ALIGN)
    V += batch * v_batch * ALIGN + key_head * v_head * ALIGN + token * (v_row * ALIGN)

    q = load_rows(Q, row, n_queries, q_row, q_column, D, ROWS, D_TILE, ALIGN, True)
    if SHRINK != 1.0:
        q = (q * SHRINK).to(q.dtype)
    grad = load_rows(Grad, row, n_queries, grad_row, grad_column, E, ROWS, E_TILE, ALIGN, True)
    rows = row + tl.arange(0, ROWS)
    factor = tl.load(Factor + first_token + rows, mask=rows < n_queries, other=0.0)
    grad = (grad.to(tl.float32) * factor[:, None]).to(q.dtype)
    pointers = tile_pointers(Scaled, row, scaled_row, 1, ROWS, E_TILE, ALIGN)
    tl.store(pointers, grad, mask=inside(row, n_queries, E, ROWS, E_TILE))
    first, full_first, full_last, last = keys_of_rows(
        row, tl.minimum(row + ROWS, n_queries), n_keys, offset, window, KEYS, CAUSAL, WINDOWED
    )
    if PACKED:  # a tile beyond the end of a short document
        last = tl.where(row < n_queries, last, 0)
        full_last = tl.minimum(full_last, last)
    dq = tl.zeros([ROWS, D_TILE], tl.float32)
    if WINDOWED:
        for start in tl.range(first, full_first, KEYS):
            dq = _add_keys(
                dq, q, grad, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
                D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
            )
    for start in tl.range(full_first, full_last, KEYS):
        dq = _add_keys(
            dq, q, grad, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
            D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, False,
        )
    for start in tl.range(full_last, last, KEYS):
        dq = _add_keys(
            dq, q, grad, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
            D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
        )
    pointers = tile_pointers(DQ, row, dq_row, 1, ROWS, D_TILE, ALIGN)
    tl.store(pointers, dq.to(DQ.dtype.element_ty), mask=inside(row, n_queries, D, ROWS, D_TILE))


@triton.jit
def add_rows(
    dk, dv, k, v, Q, Scaled, row, start, n_queries, offset, window,
    q_row, q_column, scaled_row,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    FUSED: tl.constexpr, MASKED: tl.constexpr,
):
    """(dk + dS^T q, dv + relu(s)^T f dO) over one tile of query rows, and dS^T [KEYS,ROWS]."""
    q = load_rows(Q, row, n_queries, q_row, q_column, D, ROWS, D_TILE, ALIGN, True)
    grad = load_rows(Scaled, row, n_queries, scaled_row, 1, E, ROWS, E_TILE, ALIGN, True)
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")
    if MASKED:
        keys = (start - row - offset + tl.arange(0, KEYS))[:, None]
        scores = only_seen(scores, keys, tl.arange(0, ROWS)[None, :], window, CAUSAL, WINDOWED)
    weights = relu_as(scores, q.dtype, FUSED)
    dv = tl.dot(weights, grad, dv, input_precision="ieee")
    d_scores = gated(weights, tl.dot(v, tl.trans(grad), input_precision="ieee"), q.dtype, FUSED)
    dk = tl.dot(d_scores, q, dk, input_precision="ieee")
    return dk, dv, d_scores


@triton.jit(do_not_specialize=["n_queries", "n_keys", "offset", "window", "tiles", "heads", "group"])
def dkdv_kernel(
    Q, K, V, Scaled, DK, DV, Documents,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, scaled_batch, scaled_head, scaled_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    n_queries, n_keys, offset, window, tiles, heads, group,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, SHRINK: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, PACKED: tl.constexpr, FUSED: tl.constexpr,
):
    """Program p: block p % tiles of keys of pair p // tiles of batch (or document) and key head (`heads` of them)."""
    program = tl.program_id(0)
    pair = program // tiles
    batch = pair // heads
    key_head = (pair % heads).to(tl.int64)
    start = (program % tiles) * KEYS
    first_token = batch * 0
    if PACKED:
        first_token = tl.load(Documents + batch)
        n_queries = tl.load(Documents + batch + 1) - first_token
        n_keys = n_queries
        batch = batch * 0
    token, batch = first_token.to(tl.int64), batch.to(tl.int64)
    K += batch * k_batch * ALIGN + key_head * k_head * ALIGN + token * (k_row * ALIGN)
    V += batch * v_batch * ALIGN + key_head * v_head * ALIGN + token * (v_row * ALIGN)
    DK += batch * dk_batch * ALIGN + key_head * dk_head * ALIGN + token * (dk_row * ALIGN)
    DV += batch * dv_batch * ALIGN + key_head * dv_head * ALIGN + token * (dv_row * ALIGN)

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
        Q_head = Q + batch * q_batch * ALIGN + head * q_head * ALIGN + token * (q_row * ALIGN)
        Scaled_head = Scaled + batch * scaled_batch * ALIGN + head * scaled_head * ALIGN
        Scaled_head += token * (scaled_row * ALIGN)
        if CAUSAL:
            for row in tl.range(first, tl.minimum(full_first, last), ROWS):
                dk, dv, _ = add_rows(
                    dk, dv, k, v, Q_head, Scaled_head, row, start, n_queries, offset, window, q_row, q_column,
                    scaled_row, D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
                )
        for row in tl.range(full_first, full_last, ROWS):
            dk, dv, _ = add_rows(
                dk, dv, k, v, Q_head, Scaled_head, row, start, n_queries, offset, window, q_row, q_column,
                scaled_row, D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, False,
            )
        if WINDOWED:
            for row in tl.range(full_last, last, ROWS):
                dk, dv, _ = add_rows(
                    dk, dv, k, v, Q_head, Scaled_head, row, start, n_queries, offset, window, q_row, q_column,
                    scaled_row, D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
                )
    here = inside(start, n_keys, D, KEYS, D_TILE)
    tl.store(tile_pointers(DK, start, dk_row, 1, KEYS, D_TILE, ALIGN), dk.to(DK.dtype.element_ty), mask=here)
    dv = dv * (1.0 / SHRINK)
    here = inside(start, n_keys, E, KEYS, E_TILE)
    tl.store(tile_pointers(DV, start, dv_row, 1, KEYS, E_TILE, ALIGN), dv.to(DV.dtype.element_ty), mask=here)
