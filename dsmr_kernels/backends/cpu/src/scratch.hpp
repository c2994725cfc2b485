// Working memory: one block per thread that grows to the largest request and is handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdlib>

#include "types.hpp"

namespace dsmr::DSMR_ISA {

constexpr std::size_t ALIGNMENT = 64; // a cache line, and the widest vector

DSMR_INLINE std::size_t aligned(std::size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

class Scratch {
public:
    ~Scratch() { std::free(data_); }

    // Room for `bytes` in all; what was taken before is given up. False if the machine has not enough.
    bool reserve(std::size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        std::free(data_);
        data_ = static_cast<char*>(std::aligned_alloc(ALIGNMENT, aligned(bytes)));
        size_ = data_ ? aligned(bytes) : 0;
        return data_ != nullptr;
    }

    template <class T>
    T* take(std::size_t count) {
        T* const piece = reinterpret_cast<T*>(data_ + used_);
        used_ += aligned(count * sizeof(T));
        return piece;
    }

private:
    char* data_ = nullptr;
    std::size_t size_ = 0, used_ = 0;
};

} // namespace dsmr::DSMR_ISA
