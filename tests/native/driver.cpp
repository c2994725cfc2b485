// Runs the attention kernels through their C interface, without Python.
//
//     driver check [COUNT [SEED]]   COUNT random plans on every instruction set of this machine, against the definition
//     driver isas                   those instruction sets, the best first
//     driver compiler               what built the library
//     driver cases                  what there is to count
//     driver count ISA CASE         one call on fixed numbers, for valgrind to count the instructions of
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

#include <signal.h>
#include <unistd.h>

#include "cases.hpp"
#include "oracle.hpp"
#include "stream.hpp"

namespace driver {
namespace {

std::vector<std::string> isas() {
    std::istringstream names(dsmr_kernels_available());
    std::vector<std::string> isas;
    for (std::string isa; names >> isa;) isas.push_back(isa);
    return isas;
}

void use(const std::string& isa) {
    if (!dsmr_kernels_use(isa.c_str())) throw std::runtime_error("this machine does not run " + isa);
}

// How far a result may be from the exact one. Sums are in float32: every operation rounds by `unit` at most, and what a
// result is the sum of errs by so many of them. With bf16, factors of the products are rounded to it, too.
struct Tolerance {
    Tolerance(const Plan& plan, const Results& exact) {
        const double unit = 0x1p-24;
        type_unit = plan.type == Type::float32 ? unit : plan.type == Type::float16 ? 0x1p-11 : 0x1p-8;
        smallest = plan.type == Type::float16 ? 0x1p-24 : 0x1p-149;
        low = plan.type == Type::bfloat16 ? 0x1p-8 : 0;
        weight = unit * (2 * (plan.dim + 8) * exact.largest_logit + exact.terms + 16);
        weight += low * (2 * exact.largest_product + 1);
    }
    double out(double value, double magnitude) const {
        return 2 * type_unit * std::fabs(value) + (weight + low) * magnitude + smallest;
    }
    double grad(double value, double magnitude) const {
        return 2 * type_unit * std::fabs(value) + (2 * weight + 3 * low + type_unit) * magnitude + smallest;
    }
    double lse(double value) const { return weight + 0x1p-23 * std::fabs(value); }

    double type_unit, smallest, low, weight;
};

// The largest error as a part of what is allowed.
class Judge {
public:
    double worst = 0;
    std::string where = "nothing";

    template <typename Allowed>
    void compare(const char* name, const std::vector<double>& got, const Expected& exact, const Allowed& allowed) {
        for (size_t i = 0; i < got.size(); ++i) {
            const double value = exact.value[i];
            if (got[i] == value) continue;
            const double part = std::fabs(got[i] - value) / allowed(value, exact.magnitude[i]);
            if (part <= worst) continue;
            worst = part;
            where = std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(got[i]);
            where += ", expected " + std::to_string(value);
            if (std::isnan(part)) worst = INFINITY;
        }
    }

    void judge(const Plan& plan, const Output& got, const Results& exact) {
        const Tolerance tolerance(plan, exact);
        const auto out = [&](double value, double magnitude) { return tolerance.out(value, magnitude); };
        const auto lse = [&](double value, double) { return tolerance.lse(value); };
        const auto grad = [&](double value, double magnitude) { return tolerance.grad(value, magnitude); };
        compare("o", got.out, exact.out, out);
        compare("lse", got.lse, exact.lse, lse);
        compare("dq", got.q_grad, exact.q_grad, grad);
        compare("dk", got.k_grad, exact.k_grad, grad);
        compare("dv", got.v_grad, exact.v_grad, grad);
    }
};

std::string describe(const Plan& plan) {
    std::ostringstream text;
    text << name(plan.type) << ", ring " << name(plan.storage) << ", Hkv " << plan.kv_heads << ", group " << plan.group;
    text << ", D " << plan.dim << ", horizon " << plan.horizon << (plan.token_window ? " by token" : " by segment");
    text << ", stride " << plan.stride << (plan.keep_random ? " random" : "") << ", steps " << plan.steps;
    text << ", softcap " << plan.softcap << (plan.slopes.empty() ? "" : ", slopes") << ", segments";
    for (const auto& counts : plan.segments) {
        text << " [";
        for (const int count : counts) text << ' ' << count;
        text << " ]";
    }
    return text.str();
}

// A kernel that leaves its buffers ends the program: where it happened, and then what would have been without us.
class FaultReport {
public:
    FaultReport() {
        struct sigaction action = {};
        action.sa_handler = tell;
        sigaction(SIGSEGV, &action, &before_segv);
        sigaction(SIGBUS, &action, &before_bus); // macOS
    }
    void at(const std::string& place) { text = "FAILED: memory beyond a buffer was touched " + place + "\n"; }

private:
    static void tell(int) {
        sigaction(SIGSEGV, &before_segv, nullptr);
        sigaction(SIGBUS, &before_bus, nullptr);
        if (write(STDERR_FILENO, text.data(), text.size()) < 0) std::abort();
    }

    static inline std::string text;
    static inline struct sigaction before_segv, before_bus;
};

bool equal(const Output& a, const Output& b) {
    return a.out == b.out && a.lse == b.lse && a.q_grad == b.q_grad && a.k_grad == b.k_grad && a.v_grad == b.v_grad;
}

// One plan on the instruction set in use: the largest error as a part of what is allowed.
Judge judge(const Plan& plan, const std::vector<Numbers>& numbers, const std::vector<Results>& exact, const Way& way) {
    Judge judge;
    try {
        const std::vector<Output> one = run(plan, numbers, way);
        const std::vector<Output> three = run(plan, numbers, {3, Edge::start, 0, false});
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            judge.judge(plan, one[lane], exact[lane]);
            if (!equal(one[lane], three[lane])) throw std::runtime_error("three threads or another alignment change the result");
        }
    } catch (const std::runtime_error& error) {
        judge.worst = INFINITY;
        judge.where = error.what();
    }
    return judge;
}

// What Python cannot see without reading tensors, the kernels refuse, before they have written anything.
void check_refusals() {
    Plan plan;
    plan.pieces = {{4}, {4}};
    plan.segments = {{4, 4}};
    Ring ring(plan, Edge::end);
    Tensors tensors(plan, 4, 0, Edge::end);
    DsmrCall call = {};
    ring.describe(plan, call);
    tensors.describe(plan, call);
    call.threads = call.append = 1;
    int64_t lengths[] = {4, 5};
    call.segment_len = lengths;
    call.len_bytes = sizeof(int64_t);
    const auto expect_refusal = [&](DsmrStatus status, int64_t first, int64_t second) {
        const bool refused = dsmr_kernels_forward(&call) == status && call.error[0] == 1 && call.error[1] == first;
        if (!refused || call.error[2] != second || ring.written[0] || !std::isnan(tensors.o.get(0)))
            throw std::runtime_error("a call that must be refused was not, or not before writing");
    };
    expect_refusal(DSMR_BAD_SEGMENT_LEN, 5, 0);
    lengths[1] = -1;
    expect_refusal(DSMR_BAD_SEGMENT_LEN, -1, 0);
    lengths[1] = 2;
    ring.clock[5] = 3; // of an open segment of four tokens, three are there: two more are too many
    expect_refusal(DSMR_SEGMENT_TOO_LONG, 3, 2);
    int64_t starts[] = {0, 0, 0, 0, 0, 0, 3, 3}; // token 2 begins at a token that is yet to come
    call.segment_start = starts, call.start_bytes = sizeof(int64_t);
    ring.clock[5] = 0;
    expect_refusal(DSMR_BAD_SEGMENT_START, call.error[1], call.error[2]);
}

// A clock of a saved state may hold any number, and so may a horizon: no address is computed from them unseen.
void check_clocks_of_strangers() {
    for (const bool token_window : {false, true}) {
        for (int number = 0; number < 4; ++number) {
            for (const int64_t value : {INT64_MAX, INT64_MAX - 4, INT64_MIN, int64_t(-1)}) {
                Plan plan;
                plan.pieces = {{4}, {4}};
                plan.segments = {{4, 4}};
                Ring ring(plan, Edge::end);
                Tensors tensors(plan, 4, 0, Edge::end);
                DsmrCall call = {};
                ring.describe(plan, call);
                tensors.describe(plan, call);
                call.threads = call.append = 1, call.window_token = token_window;
                int64_t horizon = number == 3 ? value : *call.horizon;
                call.horizon = &horizon;
                if (number < 3) ring.clock[2 * number + 1] = value;
                const bool refused = dsmr_kernels_forward(&call) == DSMR_BAD_CLOCK && call.error[number] == value;
                if (!refused || ring.written[0] || !std::isnan(tensors.o.get(0)))
                    throw std::runtime_error("a clock or horizon of nonsense was not refused, or not before writing");
            }
        }
    }
}

// Bug: as GCC 11 and 12 compiled them, the portable kernels read two values of the row beyond the last key and value.
void check_last_row() {
    Plan plan;
    plan.pieces = {{12}};
    plan.segments = {{12}};
    plan.dim = 3;
    Random random(0);
    run(plan, {Numbers(plan, 0, random)}, {1, Edge::end, 5, false});
}

int check(int count, uint64_t seed) {
    FaultReport faults;
    for (const std::string& isa : isas()) {
        use(isa);
        check_refusals();
        check_clocks_of_strangers();
        faults.at("on " + isa + ": the row beyond the last");
        check_last_row();
    }
    double worst = 0;
    for (int i = 0; i < count; ++i) {
        Random random(seed + i);
        const Plan plan = Plan::random(random);
        const std::string what = "plan " + std::to_string(seed + i) + ": " + describe(plan);
        std::vector<Numbers> numbers;
        std::vector<Results> exact;
        for (int lane = 0; lane < plan.lanes(); ++lane) {
            numbers.emplace_back(plan, lane, random);
            exact.push_back(expect(plan, lane, numbers.back()));
        }
        for (const std::string& isa : isas()) {
            use(isa);
            faults.at("on " + isa + ";\n" + what);
            const Judge found = judge(plan, numbers, exact, {1, Edge::end, random.between(0, 5), random.one_in(2)});
            worst = std::max(worst, found.worst);
            if (found.worst <= 1) continue;
            std::printf("FAILED on %s: %s;\n", isa.c_str(), found.where.c_str());
            std::printf("%s\n", what.c_str());
            return 1;
        }
    }
    std::printf("%d plans on", count);
    for (const std::string& isa : isas()) std::printf(" %s", isa.c_str());
    std::printf(": the largest error is %.0f %% of what is allowed\n", 100 * worst);
    return 0;
}

int count(const std::string& isa, const std::string& name) {
    use(isa);
    for (const Case& each : cases())
        if (each.name == name) return each.run();
    throw std::runtime_error("there is no case " + name);
}

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::string command = arguments.empty() ? "" : arguments[0];
    if (command == "check" && argc <= 4)
        return check(argc > 2 ? std::stoi(arguments[1]) : 200, argc > 3 ? std::stoull(arguments[2]) : 0);
    if (command == "isas" && argc == 2) {
        for (const std::string& isa : isas()) std::printf("%s\n", isa.c_str());
        return 0;
    }
    if (command == "compiler" && argc == 2) {
        std::printf("%s\n", dsmr_kernels_compiler());
        return 0;
    }
    if (command == "cases" && argc == 2) {
        for (const Case& each : cases()) std::printf("%s\n", each.name.c_str());
        return 0;
    }
    if (command == "count" && argc == 4) return count(arguments[1], arguments[2]);
    std::fprintf(stderr, "usage: driver check [COUNT [SEED]] | isas | compiler | cases | count ISA CASE\n");
    return 2;
}

} // namespace
} // namespace driver

int main(int argc, char** argv) {
    try {
        return driver::main(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
