"""Forward pass: one program per (batch, head, tile of query rows), one launch, no scores in memory.

    out_i = factor_i * sum_{j seen by i} relu(<q_i, k_j>) v_j

The factor holds the scale and the normaliser: one multiply per element of the output, outside the loop over keys.
"""

import triton
import triton.language as tl

from icrl.attention.gpu.pieces import inside, keys_of_rows, load_rows, only_seen, relu_as, tile_pointers

# arguments of one kind share a line
# fmt: off


@triton.jit
def _add_block(
    out, q, K, V, start, row, n_keys, offset, window,
    k_row, k_column, v_row, v_column,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    FUSED: tl.constexpr, MASKED: tl.constexpr,
):
    """out + relu(q k^T) v over one block of keys; MASKED: some row does not see some key of it."""
    k = load_rows(K, start, n_keys, k_row, k_column, D, KEYS, D_TILE, ALIGN, MASKED)
    v = load_rows(V, start, n_keys, v_row, v_column, E, KEYS, E_TILE, ALIGN, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        positions = (row + offset - start + tl.arange(0, ROWS))[:, None]
        scores = only_seen(scores, tl.arange(0, KEYS)[None, :], positions, window, CAUSAL, WINDOWED)
    return tl.dot(relu_as(scores, v.dtype, FUSED), v, out, input_precision="ieee")


@triton.jit(do_not_specialize=["n_queries", "n_keys", "offset", "window", "tiles", "heads", "group"])
def forward_kernel(
    Q, K, V, Factor, Out, Documents,
    q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
    v_batch, v_head, v_row, v_column, out_batch, out_head, out_row,
    n_queries, n_keys, offset, window, tiles, heads, group,
    D: tl.constexpr, E: tl.constexpr, D_TILE: tl.constexpr, E_TILE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, ALIGN: tl.constexpr, SHRINK: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, PACKED: tl.constexpr, FUSED: tl.constexpr,
):
    """Program p: tile tiles-1 - p % tiles (the longest first) of pair p // tiles of batch (or document) and head."""
    program = tl.program_id(0)
    pair = program // tiles
    batch = pair // heads
    head = pair % heads
    row = (tiles - 1 - program % tiles) * ROWS
    first_token = batch * 0
    if PACKED:
        first_token = tl.load(Documents + batch)
        n_queries = tl.load(Documents + batch + 1) - first_token
        n_keys = n_queries
        batch = batch * 0
    token = first_token.to(tl.int64)
    Q += batch.to(tl.int64) * q_batch * ALIGN + head.to(tl.int64) * q_head * ALIGN + token * (q_row * ALIGN)
    Out += batch.to(tl.int64) * out_batch * ALIGN + head.to(tl.int64) * out_head * ALIGN
    Out += token * (out_row * ALIGN)
    key_head = (head // group).to(tl.int64)
    K += batch.to(tl.int64) * k_batch * ALIGN + key_head * k_head * ALIGN + token * (k_row * ALIGN)
    V += batch.to(tl.int64) * v_batch * ALIGN + key_head * v_head * ALIGN + token * (v_row * ALIGN)

    q = load_rows(Q, row, n_queries, q_row, q_column, D, ROWS, D_TILE, ALIGN, True)
    if SHRINK != 1.0:
        q = (q * SHRINK).to(q.dtype)
    first, full_first, full_last, last = keys_of_rows(
        row, tl.minimum(row + ROWS, n_queries), n_keys, offset, window, KEYS, CAUSAL, WINDOWED
    )
    if PACKED:  # a tile beyond the end of a short document
        last = tl.where(row < n_queries, last, 0)
        full_last = tl.minimum(full_last, last)
    out = tl.zeros([ROWS, E_TILE], tl.float32)
    if WINDOWED:
        for start in tl.range(first, full_first, KEYS):
            out = _add_block(
                out, q, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
                D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
            )
    for start in tl.range(full_first, full_last, KEYS):
        out = _add_block(
            out, q, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
            D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, False,
        )
    for start in tl.range(full_last, last, KEYS):
        out = _add_block(
            out, q, K, V, start, row, n_keys, offset, window, k_row, k_column, v_row, v_column,
            D, E, D_TILE, E_TILE, ROWS, KEYS, ALIGN, CAUSAL, WINDOWED, FUSED, True,
        )
    rows = row + tl.arange(0, ROWS)
    factor = tl.load(Factor + first_token + rows, mask=rows < n_queries, other=0.0)
    out = out * (factor * (1.0 / SHRINK))[:, None]
    pointers = tile_pointers(Out, row, out_row, 1, ROWS, E_TILE, ALIGN)
    tl.store(pointers, out.to(Out.dtype.element_ty), mask=inside(row, n_queries, E, ROWS, E_TILE))
