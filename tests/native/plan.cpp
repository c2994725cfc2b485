#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace driver {
namespace {

struct Format {
    const char* name;
    int bytes, significand, lowest_exponent; // bits with the hidden one; exponent of the smallest normal number
    int exponent_shift; // of the encoding: its bits are (exponent - lowest + 1) << shift | fraction
};

const Format FORMATS[] = {
        {"float32", 4, 24, -126, 23}, {"bfloat16", 2, 8, -126, 7}, {"float16", 2, 11, -14, 10},
        {"int8", 1, 0, 0, 0},         {"float8_e4m3", 1, 4, -6, 3},
};

const Format& format(Type type) { return FORMATS[int(type)]; }

uint32_t encode(double x, const Format& f) {
    const int sign_bit = f.bytes * 8 - 1;
    const uint32_t sign = std::signbit(x) ? 1u << sign_bit : 0;
    if (std::isnan(x)) return (1u << sign_bit) - 1;
    x = std::fabs(x);
    if (x < std::ldexp(1.0, f.lowest_exponent))
        return sign | uint32_t(std::ldexp(x, f.significand - 1 - f.lowest_exponent));
    int exponent;
    const double fraction = std::frexp(x, &exponent) * 2 - 1; // x = (1 + fraction) 2^(exponent - 1)
    const uint32_t high = uint32_t(exponent - 1 - f.lowest_exponent + 1) << f.exponent_shift;
    return sign | (high + uint32_t(std::ldexp(fraction, f.exponent_shift)));
}

double decode(uint32_t bits, const Format& f) {
    const int sign_bit = f.bytes * 8 - 1;
    const uint32_t magnitude = bits & ((1u << sign_bit) - 1);
    const uint32_t high = magnitude >> f.exponent_shift, low = magnitude & ((1u << f.exponent_shift) - 1);
    const uint32_t highest = (1u << (sign_bit - f.exponent_shift)) - 1;
    double x;
    if (f.bytes > 1 && high == highest)
        x = low ? std::nan("") : std::numeric_limits<double>::infinity();
    else if (f.bytes == 1 && magnitude == 0x7f)
        x = std::nan("");
    else if (high == 0)
        x = std::ldexp(low, f.lowest_exponent - f.exponent_shift);
    else
        x = std::ldexp((1u << f.exponent_shift) + low, int(high) - 1 + f.lowest_exponent - f.exponent_shift);
    return bits >> sign_bit & 1 ? -x : x;
}

} // namespace

const char* name(Type type) { return format(type).name; }
int size(Type type) { return format(type).bytes; }

double rounded(double x, Type type) {
    const Format& f = format(type);
    if (x == 0 || !std::isfinite(x)) return x;
    int exponent;
    std::frexp(x, &exponent);
    const int unit = std::max(exponent - 1, f.lowest_exponent) - f.significand + 1;
    return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

void put(double x, Type type, void* memory, int64_t index) {
    if (type == Type::float32) {  // the machine's own: most numbers are
        static_cast<float*>(memory)[index] = float(x);
        return;
    }
    const uint32_t bits = type == Type::int8 ? uint8_t(int8_t(x)) : encode(x, format(type));
    std::memcpy(static_cast<char*>(memory) + index * size(type), &bits, size(type)); // of little-endian machines
}

double get(Type type, const void* memory, int64_t index) {
    if (type == Type::float32) return static_cast<const float*>(memory)[index];
    uint32_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(memory) + index * size(type), size(type));
    return type == Type::int8 ? double(int8_t(bits)) : decode(bits, format(type));
}

double requantised(double x, double largest, Type storage) {
    if (largest == 0) return 0;
    const float scale = float(largest) / (storage == Type::int8 ? 127.0f : 448.0f);
    const float scaled = float(x) / scale;
    return (storage == Type::int8 ? std::nearbyint(scaled) : rounded(scaled, storage)) * double(scale);
}

uint32_t Random::bits() {  // M. O'Neill (2014), "PCG": a linear congruential generator, its output permuted
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const uint32_t mixed = uint32_t(((state_ >> 18) ^ state_) >> 27);
    const uint32_t turn = uint32_t(state_ >> 59);
    return mixed >> turn | mixed << (-turn & 31);
}

double Random::normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += bits() * 0x1p-32;
    return sum;
}

int Plan::longest() const {
    int longest = 1;
    for (const auto& counts : segments) longest = std::max(longest, *std::max_element(counts.begin(), counts.end()));
    return longest;
}

int Plan::tokens(int lane) const {
    int sum = 0;
    for (const auto& counts : segments) sum += counts[lane];
    return sum;
}

Plan Plan::random(Random& random) {
    Plan plan;
    const bool large = random.one_in(8); // enough for several tiles
    const int lanes = large ? 1 : random.between(1, 3), segments = large ? 2 : random.between(1, 5);
    const int longest = random.between(1, large ? 150 : 20);
    for (int s = 0; s < segments; ++s) {
        plan.segments.emplace_back();
        for (int lane = 0; lane < lanes; ++lane) {
            const int most = random.one_in(2) ? longest : random.between(0, longest);
            plan.segments.back().push_back(most);
        }
    }
    plan.pieces.resize(lanes);
    for (int lane = 0; lane < lanes; ++lane)
        for (int left = plan.tokens(lane); left > 0; left -= plan.pieces[lane].back())
            plan.pieces[lane].push_back(random.one_in(2) ? left : random.between(1, left));
    plan.horizon = random.one_in(8) ? 0 : random.between(1, random.one_in(2) ? 10 : 200);
    plan.token_window = random.one_in(2);
    if (!plan.token_window && random.one_in(3)) {
        plan.stride = random.between(2, 5);
        plan.keep_random = random.one_in(2);
    }
    plan.steps = random.one_in(3) ? random.between(1, 6) : 0;
    plan.kv_heads = random.between(1, 2);
    plan.group = random.between(1, random.one_in(4) ? 6 : 2);
    const int dims[] = {1, 3, 8, 16, 20, 32, 64, 80, 128};
    plan.dim = dims[random.between(0, 8)];
    const Type types[] = {Type::float32, Type::bfloat16, Type::float16};
    plan.type = plan.storage = types[random.between(0, 2)];
    if (random.one_in(3)) plan.storage = random.one_in(2) ? Type::int8 : Type::float8_e4m3;
    plan.scale = float(1 / std::sqrt(double(plan.dim)));
    if (random.one_in(4)) plan.softcap = 2;
    if (random.one_in(4))
        for (int head = 0; head < plan.heads(); ++head) plan.slopes.push_back(0.5f / float(1 + head));
    return plan;
}

Numbers::Numbers(const Plan& plan, int lane, Random& random) {
    const size_t tokens = plan.tokens(lane);
    const auto fill = [&](std::vector<double>& x, int per_token, Type type) {
        for (size_t i = 0; i < tokens * per_token; ++i) x.push_back(rounded(random.normal(), type));
    };
    fill(q, plan.heads() * plan.dim, plan.type);
    fill(k, plan.kv_heads * plan.dim, plan.type);
    fill(v, plan.kv_heads * plan.dim, plan.type);
    fill(out_grad, plan.heads() * plan.dim, plan.type);
    fill(lse_grad, plan.heads(), Type::float32);
}

} // namespace driver
