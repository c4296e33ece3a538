// Noise feedback inside one block of columns; see feedback.hpp.
#include "feedback.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace trueaxis {
namespace {

constexpr float kLargestMagnitude = 16777216.0F;  // |k| stays within the coder's range of 2^24

int clamp_class(int64_t code, int classes) { return static_cast<int>(std::clamp<int64_t>(code, 0, classes - 1)); }

// target -= error * coefficient, the same additions in the same order on every instruction set.
__attribute__((target_clones("avx512f", "avx2", "default"))) void subtract_scaled(float* target, const float* error,
                                                                                  float coefficient, size_t count) {
    for (size_t i = 0; i < count; ++i) target[i] -= error[i] * coefficient;
}

float escape_bits(float excess, int order) {
    const float scaled = std::floor(excess / std::exp2(static_cast<float>(order))) + 1.0F;
    return 2.0F * std::floor(std::log2(scaled)) + 2.0F + static_cast<float>(order);
}

float code_bits(const RoundingModel& model, int cls, float magnitude) {
    const float* row = model.bits + static_cast<size_t>(cls) * (model.max_magnitude + 2);
    const auto limit = static_cast<float>(model.max_magnitude);
    if (magnitude <= limit) return row[static_cast<int>(magnitude)];
    return row[model.max_magnitude + 1] + escape_bits(magnitude - limit - 1.0F, model.escape_orders[cls]);
}

float reconstruction(const RoundingModel& model, int cls, float magnitude) {
    if (magnitude == 0.0F) return 0.0F;
    return 2.0F * magnitude + model.offsets[cls * 2 + (magnitude >= 2.0F ? 1 : 0)];
}

// Magnitude for |x| in fine grid units: the two neighbouring points and zero compete on error² + λ·bits. Errors are
// those to the grid points: thresholds that followed the offsets, which follow the thresholds, would drift toward
// cells of equal occupation, which is the best quantizer for a coder without entropy coding.
float choose_magnitude(const RoundingModel& model, int cls, float x) {
    const float below = std::min(std::floor(x * 0.5F), kLargestMagnitude - 1.0F);
    const float candidates[3] = {below, below + 1.0F, 0.0F};
    float best = below;
    float best_cost = INFINITY;
    for (const float magnitude : candidates) {
        const float error = x - 2.0F * magnitude;
        float cost = error * error;
        if (model.lambda > 0.0F) cost += model.lambda * code_bits(model, cls, magnitude);
        if (cost < best_cost) {
            best_cost = cost;
            best = magnitude;
        }
    }
    return best;
}

// Code of the column's scale: mean |k| after the rows' own scales are taken out, in codes per octave.
int column_code(const FeedbackBlock& block, const std::vector<float>& scaled, const std::vector<float>& row_scales) {
    double sum = 0.0;
    for (size_t i = 0; i < block.rows; ++i) sum += static_cast<double>(std::fabs(scaled[i]) * row_scales[i]);
    const double mean = 0.5 * sum / static_cast<double>(block.rows);
    if (!(mean > 1e-9)) return 0;
    const double code = std::log2(mean) * block.codes_per_octave + block.zero_code;
    return std::max(0, static_cast<int>(std::lround(code)));
}

void quantize_column(const RoundingModel& model, const FeedbackBlock& block, size_t j, std::vector<float>& scaled,
                     const std::vector<float>& row_scales) {
    const float* target = block.targets + j * block.rows;
    const float* weight = block.weights + j * block.rows;
    int32_t* index = block.indices + j * block.rows;
    float* error = block.errors + j * block.rows;
    const auto group = static_cast<size_t>(block.groups[j]);
    const float column_step = block.column_steps[j];
    for (size_t i = 0; i < block.rows; ++i)
        scaled[i] = target[i] / (column_step * block.row_steps[i * block.group_count + group]);
    const int code = column_code(block, scaled, row_scales);
    block.column_codes[j] = code;
    for (size_t i = 0; i < block.rows; ++i) {
        const int cls = clamp_class((static_cast<int64_t>(block.row_codes[i]) + code) >> block.shift, model.classes);
        const float x = std::fabs(scaled[i]);
        const float magnitude = choose_magnitude(model, cls, x);
        const float sign = scaled[i] < 0.0F ? -1.0F : 1.0F;
        index[i] = static_cast<int32_t>(sign * magnitude);
        const float step = column_step * block.row_steps[i * block.group_count + group];
        error[i] = sign * reconstruction(model, cls, magnitude) * step - weight[i];
        if (magnitude > 0.0F) {
            const size_t cell = static_cast<size_t>(cls) * 2 + (magnitude >= 2.0F ? 1 : 0);
            block.residual_sums[cell] += static_cast<double>(x - 2.0F * magnitude);
            block.residual_counts[cell] += 1.0;
        }
    }
}

}  // namespace

void quantize_block(const RoundingModel& model, const FeedbackBlock& block) {
    std::vector<float> scaled(block.rows);
    std::vector<float> row_scales(block.rows);
    for (size_t i = 0; i < block.rows; ++i)
        row_scales[i] = std::exp2(-static_cast<float>(block.row_codes[i]) / static_cast<float>(block.codes_per_octave));
    for (size_t j = block.columns; j-- > 0;) {
        quantize_column(model, block, j, scaled, row_scales);
        if (block.factor == nullptr) continue;
        const float* error = block.errors + j * block.rows;
        for (size_t i = 0; i < j; ++i)
            subtract_scaled(block.targets + i * block.rows, error, block.factor[j * block.columns + i], block.rows);
    }
}

}  // namespace trueaxis
