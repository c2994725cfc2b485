// What kernels.cpp defines once per instruction set.
#pragma once

#include "api.h"

namespace dsmr {

struct Kernels {
    DsmrStatus (*forward)(DsmrCall& call);
    DsmrStatus (*backward)(DsmrCall& call);
};

} // namespace dsmr
