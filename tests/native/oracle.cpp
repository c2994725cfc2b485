#include "oracle.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace driver {
namespace {

struct Token {
    int piece, index, segment, call; // index: since the piece began; call: of the segment's
};

std::vector<Token> tokens_of(const Plan& plan, int lane) {
    std::vector<Token> tokens;
    size_t piece = 0;
    int index = 0;
    for (size_t segment = 0; segment < plan.segments.size(); ++segment)
        for (int i = 0; i < plan.segments[segment][lane]; ++i) {
            tokens.push_back({int(piece), index, int(segment), plan.steps ? i / plan.steps : 0});
            if (++index == plan.pieces[lane][piece]) ++piece, index = 0;
        }
    return tokens;
}

// C. Wellons, "Prospecting for hash functions" (2018): `lowbias32`.
uint32_t hashed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352D;
    x = (x ^ (x >> 15)) * 0x846CA68B;
    return x ^ (x >> 16);
}

bool is_kept(const Plan& plan, int index) {
    const uint64_t stride = plan.stride, group = index / stride;
    const uint64_t kept = plan.keep_random ? hashed(uint32_t(group)) * stride >> 32 : stride - 1;
    return index % stride == kept;
}

// The tokens that token `n` sees in its memory, the newest first; then the horizon cuts.
std::vector<int> seen_in_memory(const Plan& plan, const std::vector<Token>& tokens, int n) {
    std::vector<int> seen;
    int before = n; // the first token of n's segment
    while (before > 0 && tokens[before - 1].segment == tokens[n].segment) --before;
    int past = 0; // tokens of n's piece that are memory
    for (int m = 0; m < before; ++m) past += tokens[m].piece == tokens[n].piece;
    for (int m = before - 1; m >= 0 && tokens[m].piece == tokens[n].piece; --m) {
        const bool complete = tokens[m].index / plan.stride < past / plan.stride;
        if (plan.stride > 1 && !(complete && is_kept(plan, tokens[m].index))) continue;
        if (plan.token_window ? n - m >= plan.horizon : int64_t(seen.size()) >= plan.horizon) break;
        seen.push_back(m);
    }
    return seen;
}

std::vector<int> seen_in_segment(const Plan& plan, const std::vector<Token>& tokens, int n) {
    std::vector<int> seen;
    for (int m = n; m >= 0 && tokens[m].segment == tokens[n].segment && tokens[m].piece == tokens[n].piece; --m) {
        if (plan.token_window && n - m >= plan.horizon) break;
        seen.push_back(m);
    }
    return seen;
}

std::vector<double> as_stored(const Plan& plan, const std::vector<double>& rows) {
    if (plan.storage == plan.type) return rows;
    std::vector<double> stored;
    for (size_t row = 0; row < rows.size(); row += plan.dim) {
        double largest = 0;
        for (int d = 0; d < plan.dim; ++d) largest = std::max(largest, std::fabs(rows[row + d]));
        for (int d = 0; d < plan.dim; ++d) stored.push_back(requantised(rows[row + d], largest, plan.storage));
    }
    return stored;
}

// One query's view of one key, and what becomes of it.
struct Term {
    const double *k, *v;
    int own; // the token that it is if it came with the query's call, else -1
    double logit, slope, weight;
};

class Query {
public:
    Query(const Plan& plan, const Numbers& numbers, int token, int head, Results& results)
        : plan(plan), numbers(numbers), results(results), kv_head(head / plan.group), dim(plan.dim), head(head),
          token(token), row(size_t(token) * plan.heads() + head), q(&numbers.q[row * dim]),
          grad(&numbers.out_grad[row * dim]) {}

    // `own`: the key comes with the query's call; others come from the ring.
    void add(const std::vector<double>& k, const std::vector<double>& v, int m, bool own) {
        const size_t at = (size_t(m) * plan.kv_heads + kv_head) * dim;
        Term term{&k[at], &v[at], own ? m : -1, 0, 1, 0};
        double size = 0;
        for (int d = 0; d < dim; ++d) {
            term.logit += q[d] * term.k[d] * plan.scale;
            size += std::fabs(q[d] * term.k[d] * plan.scale);
        }
        results.largest_product = std::max(results.largest_product, size);
        if (plan.softcap > 0) {
            const double saturation = std::tanh(term.logit / plan.softcap);
            term.logit = plan.softcap * saturation;
            term.slope = 1 - saturation * saturation;
        }
        if (!plan.slopes.empty()) {
            term.logit -= double(plan.slopes[head]) * (token - m);
            size += double(plan.slopes[head]) * (token - m);
        }
        results.largest_logit = std::max(results.largest_logit, size);
        terms.push_back(term);
        results.terms = std::max(results.terms, int(terms.size()));
    }

    void finish() {
        double highest = -std::numeric_limits<double>::infinity(), total = 0;
        for (const Term& term : terms) highest = std::max(highest, term.logit);
        for (const Term& term : terms) total += std::exp(term.logit - highest);
        results.lse.value[row] = terms.empty() ? highest : highest + std::log(total);
        results.lse.magnitude[row] = 1;
        double delta = -numbers.lse_grad[row], delta_size = std::fabs(delta);
        for (Term& term : terms) {
            term.weight = std::exp(term.logit - highest) / total;
            for (int d = 0; d < dim; ++d) {
                add_to(results.out, row * dim + d, term.weight * term.v[d]);
                delta += term.weight * term.v[d] * grad[d];
                delta_size += std::fabs(term.weight * term.v[d] * grad[d]);
            }
        }
        for (const Term& term : terms) differentiate(term, delta, delta_size);
    }

private:
    static void add_to(Expected& expected, size_t index, double x) {
        expected.value[index] += x;
        expected.magnitude[index] += std::fabs(x);
    }

    void differentiate(const Term& term, double delta, double delta_size) {
        double weight_grad = 0, weight_grad_size = 0;
        for (int d = 0; d < dim; ++d) {
            weight_grad += grad[d] * term.v[d];
            weight_grad_size += std::fabs(grad[d] * term.v[d]);
        }
        const double logit_grad = term.weight * (weight_grad - delta) * term.slope * plan.scale;
        const double logit_grad_size = term.weight * (weight_grad_size + delta_size) * plan.scale;
        for (int d = 0; d < dim; ++d) {
            results.q_grad.value[row * dim + d] += logit_grad * term.k[d];
            results.q_grad.magnitude[row * dim + d] += logit_grad_size * std::fabs(term.k[d]);
            if (term.own < 0) continue;
            const size_t key = (size_t(term.own) * plan.kv_heads + kv_head) * dim + d;
            results.k_grad.value[key] += logit_grad * q[d];
            results.k_grad.magnitude[key] += logit_grad_size * std::fabs(q[d]);
            add_to(results.v_grad, key, term.weight * grad[d]);
        }
    }

    const Plan& plan;
    const Numbers& numbers;
    Results& results;
    const int kv_head, dim, head, token;
    const size_t row;
    const double *q, *grad;
    std::vector<Term> terms;
};

} // namespace

Results expect(const Plan& plan, int lane, const Numbers& numbers) {
    const std::vector<Token> tokens = tokens_of(plan, lane);
    const std::vector<double> stored_k = as_stored(plan, numbers.k), stored_v = as_stored(plan, numbers.v);
    Results results;
    const auto zeros = [](size_t size) { return Expected{std::vector<double>(size), std::vector<double>(size)}; };
    results.out = results.q_grad = zeros(numbers.q.size());
    results.k_grad = results.v_grad = zeros(numbers.k.size());
    results.lse = zeros(numbers.lse_grad.size());
    for (int n = 0; n < int(tokens.size()); ++n)
        for (int head = 0; head < plan.heads(); ++head) {
            Query query(plan, numbers, n, head, results);
            for (const int m : seen_in_memory(plan, tokens, n)) query.add(stored_k, stored_v, m, false);
            for (const int m : seen_in_segment(plan, tokens, n)) {
                const bool own = tokens[m].call == tokens[n].call;
                query.add(own ? numbers.k : stored_k, own ? numbers.v : stored_v, m, own);
            }
            query.finish();
        }
    return results;
}

} // namespace driver
