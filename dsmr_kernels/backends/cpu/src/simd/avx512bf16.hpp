// AVX-512 with the dot product of bf16 pairs: the same header; the flags tell it that the instruction is there.
#pragma once

#include "avx512.hpp"
