// 2^x of vectors: a polynomial in the fraction of x times 2^floor(x). Of our own, because the vector mathematics of
// compilers' libraries is not to be had everywhere, and takes care of cases that no logit has. An instruction set's
// header ends with this one, and defines before it
//
//     Vec take_fraction(Vec& x)          x - floor(x), leaving in x, at least SMALLEST_EXPONENT, what this takes:
//     Vec scale_by_power(Vec p, Vec x)   p 2^floor(x); 0 for x = SMALLEST_EXPONENT and below
#pragma once

namespace dsmr::DSMR_ISA {

// The coefficients are minimax for the relative error on [0, 1]: degree 5 errs by 7.5e-8, degree 3 by 7.5e-5.
DSMR_INLINE Vec exp2(Vec x) {
    const Vec f = take_fraction(x);
    Vec p = broadcast(1.877576646e-3f);
    p = fma(p, f, broadcast(8.989340162e-3f));
    p = fma(p, f, broadcast(5.582631799e-2f));
    p = fma(p, f, broadcast(2.401536171e-1f));
    p = fma(p, f, broadcast(6.931530732e-1f));
    p = fma(p, f, broadcast(9.999999251e-1f));
    return scale_by_power(p, x);
}
DSMR_INLINE Vec exp2_rough(Vec x) {
    const Vec f = take_fraction(x);
    Vec p = broadcast(7.802452004e-2f);
    p = fma(p, f, broadcast(2.260671591e-1f));
    p = fma(p, f, broadcast(6.958335392e-1f));
    p = fma(p, f, broadcast(9.999252186e-1f));
    return scale_by_power(p, x);
}

} // namespace dsmr::DSMR_ISA
