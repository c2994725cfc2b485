// What the driver feeds to the kernels: a plan, told in tokens of pieces and segments, and the numbers that go with it.
#pragma once

#include <cstdint>
#include <vector>

namespace driver {

enum class Type { float32, bfloat16, float16, int8, float8_e4m3 };

const char* name(Type type);
int size(Type type);

// The value that `x` has after one rounding to `type`, a floating type.
double rounded(double x, Type type);
// One rounded value to memory and back.
void put(double x, Type type, void* memory, int64_t index);
double get(Type type, const void* memory, int64_t index);

// As dsmr_kernels/storage.py: what stands for `x` in a quantised row whose largest magnitude is `largest`.
double requantised(double x, double largest, Type storage);

// Uniform numbers that are the same on every machine.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint32_t bits();
    int between(int low, int high) { return low + int(bits() % uint32_t(high - low + 1)); }
    bool one_in(int n) { return bits() % uint32_t(n) == 0; }
    double normal(); // roughly, which is enough: the sum of uniform ones

private:
    uint64_t state_;
};

struct Plan {
    std::vector<std::vector<int>> pieces;    // [lane]: lengths of its pieces
    std::vector<std::vector<int>> segments; // [segment][lane]: tokens that the lane reads
    int64_t horizon = 0;
    bool token_window = false;
    int64_t stride = 1; // retention: one entry in every `stride` tokens,
    bool keep_random = false; // the last or one chosen by a hash
    int steps = 0; // 0: a segment is one call; else calls of at most so many tokens, without a backward pass of k and v
    int kv_heads = 1, group = 1, dim = 8;
    Type type = Type::float32, storage = Type::float32; // storage: `type` or a quantised one
    float scale = 1, softcap = 0;
    std::vector<float> slopes; // [heads] or none

    int lanes() const { return int(pieces.size()); }
    int heads() const { return kv_heads * group; }
    int longest() const;
    int tokens(int lane) const;

    static Plan random(Random& random);
};

// One lane's numbers, rounded to the plan's type: q, out_grad [N, H, D]; k, v [N, Hkv, D]; lse_grad [N, H].
struct Numbers {
    std::vector<double> q, k, v, out_grad, lse_grad;

    Numbers(const Plan& plan, int lane, Random& random);
};

} // namespace driver
