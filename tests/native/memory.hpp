// Memory beside a page that nothing may touch: one value too far, read or written, and the program ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace driver {

enum class Edge { end, start }; // what lies at the border of that page: the last byte or the first

class Memory {
public:
    Memory(std::size_t bytes, Edge edge); // every bit set, which is NaN in floating types and -1 in others
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&&) = delete;
    ~Memory();

    void* data() const { return data_; }
    bool operator==(const Memory& other) const; // bit for bit

private:
    char *pages_, *data_;
    std::size_t bytes_, size_; // asked for, and of the pages
};

// A vector of fixed size in such memory.
template <typename T>
class Array {
public:
    template <typename U>
    Array(const std::vector<U>& values, Edge edge) : size_(values.size()), memory_(size_ * sizeof(T), edge) {
        for (std::size_t i = 0; i < size_; ++i) data()[i] = T(values[i]);
    }

    T* data() const { return static_cast<T*>(memory_.data()); }
    T* begin() const { return data(); }
    T* end() const { return data() + size_; }
    T& operator[](std::size_t i) const { return data()[i]; }

private:
    std::size_t size_;
    Memory memory_;
};

} // namespace driver
