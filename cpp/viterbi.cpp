// Trellis-coded quantization of one column, portable variant and driver; see viterbi.hpp.
#include "viterbi.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "isa.hpp"
#include "trellis.hpp"
#include "viterbi_kernels.hpp"

namespace trueaxis {
namespace {

constexpr float kUnreachable = 1e30F;

int escape_bits(int excess, int order) {
    return 2 * std::bit_width((static_cast<unsigned>(excess) >> order) + 1) + order;
}

void branches_portable(const Rounding& rounding, Column& column, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) branch_row(rounding, column, i);
}

template <int kTrellis>
void forward_portable(const float* costs, size_t rows, float* paths, uint8_t* decisions) {
    constexpr Code code = kCodes[kTrellis];
    constexpr int half = code.states / 2;
    constexpr size_t bytes = code.states < 8 ? 1 : code.states / 8;
    constexpr uint32_t a = code.on_parity();
    constexpr uint32_t b = code.on_state() & (half - 1);
    float before[code.states];
    for (size_t i = 0; i < rows; ++i) {
        const float* cost = costs + 4 * i;
        uint8_t* decided = decisions + bytes * i;
        std::copy_n(paths, code.states, before);
        std::memset(decided, 0, bytes);
        for (int s = 0; s < code.states; ++s) {
            const uint32_t q = s >= half ? 1 : 0;
            const uint32_t from = (static_cast<uint32_t>(s) & (half - 1)) ^ (q ? b : 0);
            const float even = before[2 * from + q] + cost[2 * q];
            const float odd = before[2 * (from ^ a) + q] + cost[2 * q + 1];
            paths[s] = odd < even ? odd : even;
            decided[s / 8] |= static_cast<uint8_t>((odd < even ? 1 : 0) << (s % 8));
        }
    }
}

template <size_t... kId>
ForwardKernel portable_for(int trellis, std::index_sequence<kId...>) {
    constexpr ForwardKernel kernels[] = {forward_portable<static_cast<int>(kId) + 1>...};
    return kernels[trellis - 1];
}

std::pair<BranchKernel, ForwardKernel> kernels_for(int trellis) {
    std::pair<BranchKernel, ForwardKernel> chosen{branches_portable, nullptr};
    if (trellis > 0) chosen.second = portable_for(trellis, std::make_index_sequence<kCodeCount - 1>());
#if defined(__x86_64__)
    const Isa isa = instruction_set();
    if (isa == Isa::kAvx512) chosen = {branches_avx512, trellis > 0 ? forward_avx512(trellis) : nullptr};
    if (isa == Isa::kAvx2) chosen = {branches_avx2, trellis > 0 ? forward_avx2(trellis) : nullptr};
#endif
    return chosen;
}

// Back from `state`; the decisions of a row are `bytes` wide, up to 8 of them loaded at a time.
template <int kTrellis>
void trace(const Column& column, uint32_t state, uint8_t* branches) {
    constexpr Code code = kCodes[kTrellis];
    constexpr size_t bytes = code.states < 8 ? 1 : code.states / 8;
    constexpr size_t loaded = bytes < 8 ? bytes : 8;
    constexpr int order = std::bit_width(static_cast<unsigned>(code.states)) - 1;
    const uint8_t* decisions = column.decisions.data();
    for (size_t i = column.rows(); i-- > 0;) {
        uint64_t word = 0;
        std::memcpy(&word, decisions + bytes * i + (bytes > 8 ? state / 64 * 8 : 0), loaded);
        const uint32_t p = static_cast<uint32_t>(word >> (state % 64)) & 1U;
        const uint32_t q = state >> (order - 1);
        branches[i] = static_cast<uint8_t>(2 * q + p);
        const uint32_t from = state ^ ((0U - q) & code.on_state()) ^ ((0U - p) & code.on_parity());
        state = (2 * from & (code.states - 1)) + q;
    }
}

template <size_t... kId>
void trace_back(int trellis, const Column& column, uint32_t state, uint8_t* branches, std::index_sequence<kId...>) {
    using Trace = void (*)(const Column&, uint32_t, uint8_t*);
    constexpr Trace traces[] = {trace<static_cast<int>(kId) + 1>...};
    traces[trellis - 1](column, state, branches);
}

}  // namespace

Rounding::Rounding(const RoundingModel& model)
    : model_(model), states_(code_of(model.trellis).states), stride_(model.max_magnitude + 1) {
    for (int q = 0; q < 2; ++q)
        for (int cls = 0; cls < model.classes; ++cls)
            for (int m = 0; m < stride_; ++m) {
                const size_t row = static_cast<size_t>(q) * model.classes + cls;
                rates_.push_back(model.lambda * model.bits[row * (model.max_magnitude + 2) + m]);
            }
}

float Rounding::rate(int quantizer, int cls, int magnitude) const {
    if (magnitude < stride_) return rates_[table(quantizer, cls) + magnitude];
    const size_t row = static_cast<size_t>(quantizer) * model_.classes + cls;
    const float escape = model_.bits[row * (stride_ + 1) + stride_];
    return model_.lambda * (escape + static_cast<float>(escape_bits(magnitude - stride_, model_.escape_orders[cls])));
}

Column::Column(size_t rows, int states)
    : targets(rows),
      classes(rows),
      costs(4 * rows),
      choices(rows),
      decisions(rows * ((states + 7) / 8)),
      branches(rows) {}

void branch_row(const Rounding& rounding, Column& column, size_t row) {
    const float x = std::fabs(column.targets[row]);
    const int cls = column.classes[row];
    int choices = 0;
    for (int q = 0; q < 2; ++q) {
        const auto cost = [&](int magnitude) {
            const float error = x - static_cast<float>(position_of(q, magnitude));
            return error * error + rounding.rate(q, cls, magnitude);
        };
        const int below = magnitude_below(x, q);
        const int odd = below & 1;
        float costs[2] = {cost(below), cost(below + 1)};
        if (odd) std::swap(costs[0], costs[1]);
        const float zero = x * x + rounding.rate(q, cls, 0);
        int even_choice = odd;
        if (zero < costs[0]) costs[0] = zero, even_choice = 2;
        column.costs[4 * row + 2 * q] = costs[0];
        column.costs[4 * row + 2 * q + 1] = costs[1];
        choices |= (even_choice | (1 - odd) << 2) << (4 * q);
    }
    column.choices[row] = static_cast<uint8_t>(choices);
}

void search_path(const Rounding& rounding, Column& column) {
    const size_t rows = column.rows();
    const auto [branch, forward] = kernels_for(rounding.trellis());
    if (forward == nullptr) {
        branch(rounding, column, 0, rows);
        for (size_t i = 0; i < rows; ++i) column.branches[i] = column.costs[4 * i + 1] < column.costs[4 * i] ? 1 : 0;
        return;
    }
    const int states = rounding.states();
    const size_t bytes = (states + 7) / 8;
    alignas(64) float paths[kMostStates];
    std::fill_n(paths, std::max(states, kPaddedStates), kUnreachable);
    paths[0] = 0.0F;
    for (size_t first = 0; first < rows; first += kCostBlock) {
        const size_t last = std::min(rows, first + kCostBlock);
        branch(rounding, column, first, last);
        forward(column.costs.data() + 4 * first, last - first, paths, column.decisions.data() + bytes * first);
        const float base = paths[0];
        for (int s = 0; s < states; ++s) paths[s] -= base;
    }
    const auto best = static_cast<uint32_t>(std::min_element(paths, paths + states) - paths);
    trace_back(rounding.trellis(), column, best, column.branches.data(), std::make_index_sequence<kCodeCount - 1>());
}

}  // namespace trueaxis
