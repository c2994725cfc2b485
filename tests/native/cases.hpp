// Calls of which instructions are counted: fixed shapes, fixed numbers, one thread, a full ring.
#pragma once

#include <string>
#include <vector>

#include "plan.hpp"

namespace driver {

struct Case {
    std::string name;
    Plan plan;
    bool backward;

    int run() const;
};

std::vector<Case> cases();

} // namespace driver
