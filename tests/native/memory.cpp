#include "memory.hpp"

#include <cstring>
#include <stdexcept>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace driver {

Memory::Memory(std::size_t bytes, Edge edge) : bytes_(bytes) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE)), usable = (bytes + page - 1) / page * page;
    size_ = usable + 2 * page;
    void* const pages = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::runtime_error("no memory between guard pages");
    pages_ = static_cast<char*>(pages);
    char* const first = pages_ + page;
    if (usable && mprotect(first, usable, PROT_READ | PROT_WRITE)) throw std::runtime_error("no guard pages");
    std::memset(first, 0xff, usable);
    data_ = edge == Edge::end ? first + usable - bytes : first;
}

Memory::Memory(Memory&& other) noexcept
    : pages_(std::exchange(other.pages_, nullptr)), data_(other.data_), bytes_(other.bytes_), size_(other.size_) {}

bool Memory::operator==(const Memory& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data_, other.data_, bytes_) == 0;
}

Memory::~Memory() {
    if (pages_) munmap(pages_, size_);
}

} // namespace driver
