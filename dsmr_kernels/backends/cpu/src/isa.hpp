// The choice among instruction sets at run time; of our own, because compilers' function versions cannot be asked for
// by name. For library.cpp, which is compiled for the oldest processor: inline functions of a file compiled with newer
// instructions could be linked in place of ours.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "build.hpp"

namespace dsmr {

inline bool runs_scalar() { return true; }
inline bool runs_neon() { return true; }
#if defined(__x86_64__)
// The compiler's run-time library also asks whether the operating system saves the wide registers.
inline bool runs_avx2() {
    unsigned a, b, c, d;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C); // not every compiler knows it by name
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
inline bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
inline bool runs_avx512bf16() {
    return runs_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

// The kernels of every instruction set that this build has and this processor runs; `Kernels` is a table of functions.
// In library.cpp, where each instruction set's kernels.cpp defines `const Kernels dsmr::<isa>::kernels`:
//
//     #define DSMR_DECLARE(isa) namespace dsmr::isa { extern const Kernels kernels; }
//     DSMR_FOR_EACH_ISA(DSMR_DECLARE)
//     #define DSMR_OFFER(isa) choice.offer(#isa, dsmr::runs_##isa(), &dsmr::isa::kernels);
//     static dsmr::Choice<Kernels> make() { dsmr::Choice<Kernels> choice; DSMR_FOR_EACH_ISA(DSMR_OFFER) return choice; }
template <typename Kernels>
class Choice {
public:
    // The last one offered is the best, and in use until another is asked for.
    void offer(const char* isa, bool runs, const Kernels* kernels) {
        if (!runs) return;
        offers_.push_back({isa, kernels});
        names_ = offers_.size() == 1 ? isa : std::string(isa) + " " + names_;
        used_ = offers_.size() - 1;
    }

    // False if `isa` is not one of `names()`.
    bool use(const char* isa) {
        for (std::size_t i = 0; i < offers_.size(); ++i)
            if (std::strcmp(offers_[i].isa, isa) == 0) {
                used_ = i;
                return true;
            }
        return false;
    }

    const char* names() const { return names_.c_str(); } // the best first, with spaces between
    const char* in_use() const { return offers_[used_].isa; }
    const Kernels& operator*() const { return *offers_[used_].kernels; }
    const Kernels* operator->() const { return offers_[used_].kernels; }

private:
    struct Offer {
        const char* isa;
        const Kernels* kernels;
    };
    std::vector<Offer> offers_;
    std::string names_;
    std::size_t used_ = 0;
};

} // namespace dsmr
