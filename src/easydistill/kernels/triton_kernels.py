"""Softmax of a slice of logits and its gradient on a GPU, in Triton: two passes over memory.

A slice of raw products x = h·Wᵀ [n, V], in the dtype of the matrix products, is all that exists. With the logits
z = f(scale · (x + b)), f the identity or a soft cap c·tanh(·/c):

- `statistics` reads x once and gives lse(z) over the whole head, lse(z/τ) over the real vocabulary, and z at a few
  columns. Every lane keeps the maximum and the sums of its own columns, with one exponential per column and
  temperature: s ← s + e^(z−m), or s·e^(m−z) + 1 if z is the new maximum. Lanes are merged at the end.
- `gradient` overwrites x with ∂loss/∂x = scale · f′ · (a · softmax(z) + b · softmax(z/τ) [v real]), a and b being
  numbers of the row; for cross-entropy alone it is softmax(z) − onehot.
- `overwrite` writes the few columns whose gradient is another.

Everything is computed in float32 (float64 for float64) and rounded once, as x is overwritten. Sums have a fixed order,
nothing is added atomically, and block sizes are not tuned at run time, so the same slices give the same bits. Offsets
are int64: n·V may pass 2³¹.

Shapes: n rows, V vocabulary, C columns of interest.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Below every logit but −inf, and finite: −inf − (−inf) is not a number."""


@triton.jit
def _logits(
    products_ptr,
    bias_ptr,
    columns,
    stored,
    known,
    exact: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """z at some columns of a row: those that are `stored`; those with a bias are `known`."""
    z = tl.load(products_ptr + columns, mask=stored, other=0.0).to(exact)
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=known, other=0.0).to(exact)
    if SCALE != 1.0:
        z *= SCALE
    if CAP != 0.0:
        # tanh, by an exponential that may overflow to infinity.
        z = CAP * (2.0 / (1.0 + tl.exp(z * (-2.0 / CAP))) - 1.0)
    return z


@triton.jit(do_not_specialize=["listed"])
def statistics(
    products_ptr,
    stride,
    bias_ptr,
    ids_ptr,
    listed,
    logits_ptr,
    lse_ptr,
    soft_lse_ptr,
    vocabulary,
    real,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PER_TEMPERATURE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    LISTED_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: z at its `listed` ids; lse(z); lse(z/τ) over columns below `real`."""
    row = tl.program_id(0).to(tl.int64)
    exact: tl.constexpr = lse_ptr.dtype.element_ty
    products_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], LOWEST, exact)
    total = tl.zeros([BLOCK], exact)
    soft_total = tl.zeros([BLOCK], exact)
    for start in range(0, real, BLOCK):
        columns = start + lanes
        # `stride` is a multiple of a wide load, which `real` need not be: a mask by it keeps loads wide.
        z = _logits(products_ptr, bias_ptr, columns, columns < stride, columns < real, exact, SCALE, CAP, HAS_BIAS)
        z = tl.where(columns < real, z, float("-inf"))
        above = z > top
        gap = -tl.abs(z - top)
        fall = tl.exp(gap)
        total = tl.where(above, total * fall + 1.0, total + fall)
        if PER_TEMPERATURE != 1.0:
            soft_fall = tl.exp(gap * PER_TEMPERATURE)
            soft_total = tl.where(above, soft_total * soft_fall + 1.0, soft_total + soft_fall)
        top = tl.maximum(top, z)
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    soft_lse = lse
    if PER_TEMPERATURE != 1.0:
        soft_total *= tl.exp((top - highest) * PER_TEMPERATURE)
        soft_lse = highest * PER_TEMPERATURE + tl.log(tl.sum(soft_total, 0))
    if PADDED:
        top = tl.full([BLOCK], LOWEST, exact)
        total = tl.zeros([BLOCK], exact)
        for start in range(real // BLOCK * BLOCK, vocabulary, BLOCK):
            columns = start + lanes
            z = _logits(
                products_ptr, bias_ptr, columns, columns < stride, columns < vocabulary, exact, SCALE, CAP, HAS_BIAS
            )
            z = tl.where((columns >= real) & (columns < vocabulary), z, float("-inf"))
            fall = tl.exp(-tl.abs(z - top))
            total = tl.where(z > top, total * fall + 1.0, total + fall)
            top = tl.maximum(top, z)
        highest = tl.max(top, 0)
        padding = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
        larger = tl.maximum(tl.maximum(lse, padding), LOWEST)
        lse = larger + tl.log(tl.exp(lse - larger) + tl.exp(padding - larger))
    tl.store(lse_ptr + row, lse)
    tl.store(soft_lse_ptr + row, soft_lse)
    places = tl.arange(0, LISTED_BLOCK)
    used = places < listed
    ids = tl.load(ids_ptr + row * listed + places, mask=used, other=0)
    z = _logits(products_ptr, bias_ptr, ids, used, used, exact, SCALE, CAP, HAS_BIAS)
    tl.store(logits_ptr + row * listed + places, z, mask=used)


@triton.jit
def gradient(
    products_ptr,
    stride,
    bias_ptr,
    lse_ptr,
    soft_lse_ptr,
    share_ptr,
    everywhere_ptr,
    label_ptr,
    vocabulary,
    real,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PER_TEMPERATURE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    LABELS_ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row and block: products are overwritten by their gradient.

    `share` and `everywhere` are the row's multiples of softmax(z) and of softmax(z/τ); with `LABELS_ALONE` they are not
    read, and the gradient is that of cross-entropy.
    """
    row = tl.program_id(0).to(tl.int64)
    exact: tl.constexpr = lse_ptr.dtype.element_ty
    products_ptr += row * stride
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = _logits(products_ptr, bias_ptr, columns, columns < stride, columns < vocabulary, exact, SCALE, CAP, HAS_BIAS)
    found = tl.exp(z - tl.load(lse_ptr + row))
    if LABELS_ALONE:
        found = tl.where(columns == tl.load(label_ptr + row), found - 1.0, found)
    else:
        share = tl.load(share_ptr + row)
        everywhere = tl.load(everywhere_ptr + row)
        if PADDED or PER_TEMPERATURE != 1.0:
            soft = tl.exp(z * PER_TEMPERATURE - tl.load(soft_lse_ptr + row))
            found = share * found + tl.where(columns < real, everywhere * soft, 0.0)
        else:
            found *= share + everywhere
    if CAP != 0.0:
        found *= 1.0 - (z / CAP) * (z / CAP)
    if SCALE != 1.0:
        found *= SCALE
    tl.store(products_ptr + columns, found.to(products_ptr.dtype.element_ty), mask=columns < stride)


@triton.jit(do_not_specialize=["listed"])
def overwrite(gradient_ptr, stride, ids_ptr, values_ptr, listed, LISTED_BLOCK: tl.constexpr):
    """One program a row: values at its ids; an id that is listed twice has the same value twice."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, LISTED_BLOCK)
    used = places < listed
    ids = tl.load(ids_ptr + row * listed + places, mask=used, other=0)
    values = tl.load(values_ptr + row * listed + places, mask=used, other=0.0)
    tl.store(gradient_ptr + row * stride + ids, values.to(gradient_ptr.dtype.element_ty), mask=used)
