// What a clock may say before a kernel indexes with it. Clocks come from saved states: they may hold any number, so
// nothing is added to one before it was compared.
#pragma once

#include "types.hpp"

namespace dsmr {

constexpr int64_t LARGEST_POSITION = int64_t(1) << 62; // as in dsmr_kernels/geometry.py

// Does all that a lane at this clock sees lie in its ring?
DSMR_INLINE bool clock_fits(int64_t position, int64_t length, int64_t phase, int64_t horizon, int64_t archive,
                            int64_t recent, int64_t stride, bool window_token) {
    if (position < 0 || position > LARGEST_POSITION || length < 0 || length > LARGEST_POSITION) return false;
    if (horizon < 0 || horizon > archive || phase < 0 || phase > LARGEST_POSITION) return false;
    if (stride > 1) return phase <= recent;
    return window_token || phase <= archive - horizon;
}

} // namespace dsmr
