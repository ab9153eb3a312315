"""Arithmetic in float32 that every GPU does alike: exp, log, erf, tanh, and a sum along a tree.

Only operations that IEEE 754 rounds once are used: add, multiply, fused multiply-add, divide and
square root to nearest, comparisons, floor, and bits. The kernels are compiled without contraction
of a product and a sum into one rounding (``enable_fp_fusion=False``), so what is fused is what says
``fma``.

Polynomials were fitted to the functions in float64 by reweighted least squares (Lawson 1961) on the
intervals that the comments give; results are within 4 units in the last place of the true value,
``tests/gpu/test_d2.py`` has the measured errors. Results below the smallest normal number are 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp_(x):
    """e^x. x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite), then 1 + r + r^2 q(r)."""
    n = tl.floor(tl.fma(tl.minimum(tl.maximum(x, -88.0), 89.0), 1.4426950408889634, 0.5))
    r = tl.fma(n, -0.693359375, x)
    r = tl.fma(n, 2.12194440e-4, r)
    q = tl.fma(r, 0.001394121441990137, 0.00836323481053114)
    q = tl.fma(r, q, 0.04166637361049652)
    q = tl.fma(r, q, 0.16666576266288757)
    q = tl.fma(r, q, 0.5)
    p = tl.fma(r * r, q, r) + 1.0
    # 2^n in two factors: 2^128 alone is no float32.
    whole = n.to(tl.int32)
    low = whole >> 1
    high = whole - low
    two_low = ((low + 127) << 23).to(tl.float32, bitcast=True)
    two_high = ((high + 127) << 23).to(tl.float32, bitcast=True)
    y = p * two_low * two_high
    y = tl.where(x < -87.33654, 0.0, y)
    y = tl.where(x > 88.72283, float("inf"), y)
    return tl.where(x != x, x, y)


@triton.jit
def log_(x):
    """Natural logarithm of normal positive x: x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)."""
    bits = x.to(tl.int32, bitcast=True)
    # 0x3F3504F3 is sqrt(1/2): what is below goes to the next exponent.
    shifted = bits - 0x3F3504F3
    e = shifted >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    g = tl.fma(f, 0.0733361542224884, -0.11661504209041595)
    g = tl.fma(f, g, 0.11634954810142517)
    g = tl.fma(f, g, -0.12396501749753952)
    g = tl.fma(f, g, 0.14251111447811127)
    g = tl.fma(f, g, -0.1666915863752365)
    g = tl.fma(f, g, 0.2000068873167038)
    g = tl.fma(f, g, -0.24999980628490448)
    g = tl.fma(f, g, 0.3333333134651184)
    square = f * f
    tail = tl.fma(square * f, g, -0.5 * square)
    scale = e.to(tl.float32)
    return tl.fma(scale, 0.693359375, f + tl.fma(scale, -2.12194440e-4, tail))


@triton.jit
def log1p_(y):
    """log(1 + y) for 0 <= y <= 1."""
    p = tl.fma(y, -0.0013185431016609073, 0.009289685636758804)
    p = tl.fma(y, p, -0.030668338760733604)
    p = tl.fma(y, p, 0.06467341631650925)
    p = tl.fma(y, p, -0.10179851949214935)
    p = tl.fma(y, p, 0.13456252217292786)
    p = tl.fma(y, p, -0.16463090479373932)
    p = tl.fma(y, p, 0.19967493414878845)
    p = tl.fma(y, p, -0.24996887147426605)
    p = tl.fma(y, p, 0.33333176374435425)
    p = tl.fma(y, p, -0.4999999701976776)
    return tl.fma(y * y, p, y)


@triton.jit
def erf_(x):
    """erf: x + x p(x^2) below 1 in size; 1 - exp(-s(|x|)) up to 4; then 1."""
    square = x * x
    p = tl.fma(square, -9.680136827228125e-06, 0.00011270544200669974)
    p = tl.fma(square, p, -0.00084847112884745)
    p = tl.fma(square, p, 0.005221074912697077)
    p = tl.fma(square, p, -0.02686544507741928)
    p = tl.fma(square, p, 0.11283782869577408)
    p = tl.fma(square, p, -0.37612637877464294)
    p = tl.fma(square, p, 0.12837916612625122)
    near = tl.fma(x, p, x)
    a = tl.minimum(tl.abs(x), 4.0)
    s = tl.fma(a, -2.5132655423476535e-07, 2.5314808226539753e-05)
    s = tl.fma(a, s, -0.0004637880192603916)
    s = tl.fma(a, s, 0.004282382782548666)
    s = tl.fma(a, s, -0.025373555719852448)
    s = tl.fma(a, s, 0.10863899439573288)
    s = tl.fma(a, s, 0.6330395936965942)
    s = tl.fma(a, s, 1.129661202430725)
    s = tl.fma(a, s, -0.0002043598797172308)
    far = 1.0 - exp_(-s)
    far = tl.where(x < 0, -far, far)
    return tl.where(tl.abs(x) < 1.0, near, tl.where(x != x, x, far))


@triton.jit
def sigmoid_(x):
    """1 / (1 + e^-x)."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + exp_(-x))


@triton.jit
def tanh_(x):
    """tanh: x + x^3 t(x^2) below 0.6 in size, 1 - 2 / (e^2|x| + 1) above."""
    square = x * x
    t = tl.fma(square, 0.0022595361806452274, -0.008313511498272419)
    t = tl.fma(square, t, 0.021759238094091415)
    t = tl.fma(square, t, -0.053958017379045486)
    t = tl.fma(square, t, 0.1333329826593399)
    t = tl.fma(square, t, -0.3333333432674408)
    near = tl.fma(x * square, t, x)
    two = tl.full(x.shape, 2.0, tl.float32)
    far = 1.0 - tl.div_rn(two, exp_(2.0 * tl.abs(x)) + 1.0)
    far = tl.where(x < 0, -far, far)
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x != x, x, far))


@triton.jit
def tree_sum(x, rows: tl.constexpr, size: tl.constexpr, levels: tl.constexpr):
    """Sum (rows, size) over the last axis to (rows,): level by level, neighbours 2j and 2j + 1.

    ``size`` is 2^``levels``. Zeros behind the last element change nothing, so the padding to a
    power of two, and how far, is not seen in the result.
    """
    for level in tl.static_range(levels):
        # The sum of two numbers has one order, whoever adds them.
        x = tl.sum(tl.reshape(x, (rows, size >> (level + 1), 2)), axis=2)
    return tl.reshape(x, (rows,))
