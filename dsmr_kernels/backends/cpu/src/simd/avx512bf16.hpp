// AVX-512 with the dot products of bf16 pairs and of bytes: the same header; the flags tell it that they are there.
#pragma once

#include "avx512.hpp"
