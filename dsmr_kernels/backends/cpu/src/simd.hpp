// The header of the instruction set that this translation unit is compiled for. DSMR_ISA is its name and that of the
// namespace of everything compiled for it.
#pragma once

#ifndef DSMR_ISA
#error "define DSMR_ISA as scalar, avx2, avx512, avx512bf16 or neon"
#endif

#define DSMR_QUOTE(x) #x
#define DSMR_QUOTE_EXPANDED(x) DSMR_QUOTE(x)
#include DSMR_QUOTE_EXPANDED(simd/DSMR_ISA.hpp)
