// What the kernels should have computed, straight from the definition and in double precision: no ring, no slots.
#pragma once

#include <vector>

#include "plan.hpp"

namespace driver {

// A result and what it could be at most if nothing cancelled, which is what rounding errors are proportional to.
struct Expected {
    std::vector<double> value, magnitude;
};

// One lane's results, laid out as `Numbers`.
struct Results {
    Expected out, lse, q_grad, k_grad, v_grad;
    double largest_logit = 0;   // the same of all logits: rounding one moves its weight by so many roundings
    double largest_product = 0; // and of what q . k adds to them
    int terms = 0; // the most that any query sees
};

Results expect(const Plan& plan, int lane, const Numbers& numbers);

} // namespace driver
