// Noise feedback inside one block of columns; see feedback.hpp.
#include "feedback.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace trueaxis {
namespace {

int clamp_class(int64_t code, int classes) { return static_cast<int>(std::clamp<int64_t>(code, 0, classes - 1)); }

// target -= error * coefficient, the same additions in the same order on every instruction set.
__attribute__((target_clones("avx512f", "avx2", "default"))) void subtract_scaled(float* target, const float* error,
                                                                                  float coefficient, size_t count) {
    for (size_t i = 0; i < count; ++i) target[i] -= error[i] * coefficient;
}

// Code of the column's scale: mean |k| after the rows' own scales are taken out, in codes per octave.
int column_code(const FeedbackBlock& block, const std::vector<float>& targets, const std::vector<float>& row_scales) {
    double sum = 0.0;
    for (size_t i = 0; i < block.rows; ++i) sum += static_cast<double>(std::fabs(targets[i]) * row_scales[i]);
    const double mean = 0.5 * sum / static_cast<double>(block.rows);
    if (!(mean > 1e-9)) return 0;
    const double code = std::log2(mean) * block.codes_per_octave + block.zero_code;
    return std::max(0, static_cast<int>(std::lround(code)));
}

// Targets and classes of column j, in fine grid units; its scale code.
void measure_column(const Rounding& rounding, const FeedbackBlock& block, size_t j,
                    const std::vector<float>& row_scales, Column& column) {
    const float* target = block.targets + j * block.rows;
    const auto group = static_cast<size_t>(block.groups[j]);
    const float column_step = block.column_steps[j];
    for (size_t i = 0; i < block.rows; ++i)
        column.targets[i] = target[i] / (column_step * block.row_steps[i * block.group_count + group]);
    const int code = column_code(block, column.targets, row_scales);
    block.column_codes[j] = code;
    for (size_t i = 0; i < block.rows; ++i)
        column.classes[i] = static_cast<uint8_t>(
            clamp_class((static_cast<int64_t>(block.row_codes[i]) + code) >> block.shift, rounding.classes()));
}

// Indices, errors and residuals of column j once its path is found.
void settle_column(const Rounding& rounding, const FeedbackBlock& block, size_t j, const Column& column) {
    const float* weight = block.weights + j * block.rows;
    int32_t* index = block.indices + j * block.rows;
    float* error = block.errors + j * block.rows;
    const auto group = static_cast<size_t>(block.groups[j]);
    for (size_t i = 0; i < block.rows; ++i) {
        const int q = column.branches[i] >> 1;
        const int cls = column.classes[i];
        const float magnitude = magnitude_at(column, i);
        const float sign = column.targets[i] < 0.0F ? -1.0F : 1.0F;
        const float step = block.column_steps[j] * block.row_steps[i * block.group_count + group];
        index[i] = static_cast<int32_t>(sign * magnitude);
        error[i] = sign * rounding.value(q, cls, magnitude) * step - weight[i];
        if (magnitude == 0.0F) continue;
        const float point = 2.0F * magnitude - static_cast<float>(q);
        const size_t cell = (static_cast<size_t>(q) * rounding.classes() + cls) * 2 + (magnitude >= 2.0F ? 1 : 0);
        block.residual_sums[cell] += static_cast<double>(std::fabs(column.targets[i]) - point);
        block.residual_counts[cell] += 1.0;
    }
}

}  // namespace

void quantize_block(const RoundingModel& model, const FeedbackBlock& block) {
    const Rounding rounding(model);
    Column column(block.rows, rounding.states());
    std::vector<float> row_scales(block.rows);
    for (size_t i = 0; i < block.rows; ++i)
        row_scales[i] = std::exp2(-static_cast<float>(block.row_codes[i]) / static_cast<float>(block.codes_per_octave));
    for (size_t j = block.columns; j-- > 0;) {
        measure_column(rounding, block, j, row_scales, column);
        search_path(rounding, column);
        settle_column(rounding, block, j, column);
        if (block.factor == nullptr) continue;
        const float* error = block.errors + j * block.rows;
        for (size_t i = 0; i < j; ++i)
            subtract_scaled(block.targets + i * block.rows, error, block.factor[j * block.columns + i], block.rows);
    }
}

}  // namespace trueaxis
