// Noise feedback inside one block of columns; see feedback.hpp.
#include "feedback.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace trueaxis {
namespace {

// The loops below are plain arithmetic without contraction: every clone gives the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

// target -= error * coefficient
CLONES void subtract_scaled(float* target, const float* error, float coefficient, size_t count) {
    for (size_t i = 0; i < count; ++i) target[i] -= error[i] * coefficient;
}

CLONES void divide(const float* values, const float* steps, float* quotients, size_t count) {
    for (size_t i = 0; i < count; ++i) quotients[i] = values[i] / steps[i];
}

// Σ |values| · scales in eight interleaved sums.
CLONES double sum_of_magnitudes(const float* values, const float* scales, size_t count) {
    constexpr size_t width = 8;
    double sums[width] = {};
    size_t i = 0;
    for (; i + width <= count; i += width)
        for (size_t l = 0; l < width; ++l) sums[l] += static_cast<double>(std::fabs(values[i + l]) * scales[i + l]);
    for (; i < count; ++i) sums[i % width] += static_cast<double>(std::fabs(values[i]) * scales[i]);
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

CLONES void classify(const int32_t* row_codes, int32_t column_code, int shift, int classes, uint8_t* found,
                     size_t count) {
    for (size_t i = 0; i < count; ++i)
        found[i] = static_cast<uint8_t>(std::clamp((row_codes[i] + column_code) >> shift, 0, classes - 1));
}

// A column's path in numbers, and residuals |x| - |u| summed by (quantizer, class, |k| >= 2); buffers of one thread.
class Settled {
   public:
    Settled(size_t rows, int classes)
        : steps(rows),
          cells(4 * static_cast<size_t>(classes)),
          residuals_(rows),
          places_(rows),
          sums_(kSums * (cells + 1)),
          counts_(sums_.size()) {}

    std::vector<float> steps;  // [m] column step * row step
    const size_t cells;

    // Indices and errors of the path found.
    void settle(const Column& column, const float* offsets, int classes, const float* weights, int32_t* indices,
                float* errors) {
        settle_rows(column.rows(), column.targets.data(), column.branches.data(), column.choices.data(),
                    column.classes.data(), steps.data(), weights, offsets, classes, indices, errors, residuals_.data(),
                    places_.data());
        // the next row rarely waits for the sum that the last one changed
        for (size_t i = 0; i < places_.size(); ++i) {
            const size_t at = static_cast<size_t>(places_[i]) + i % kSums * (cells + 1);
            sums_[at] += static_cast<double>(residuals_[i]);
            ++counts_[at];
        }
    }

    void add_to(double* sums, double* counts) const {
        for (size_t at = 0; at < sums_.size(); ++at) {
            const size_t cell = at % (cells + 1);
            if (cell == cells) continue;
            sums[cell] += sums_[at];
            counts[cell] += static_cast<double>(counts_[at]);
        }
    }

   private:
    static constexpr size_t kSums = 4;

    // Zeros go to a place of their own behind the cells.
    CLONES static void settle_rows(size_t rows, const float* __restrict targets, const uint8_t* __restrict branches,
                                   const uint8_t* __restrict choices, const uint8_t* __restrict column_classes,
                                   const float* __restrict steps, const float* __restrict weights,
                                   const float* __restrict offsets, int classes, int32_t* __restrict indices,
                                   float* __restrict errors, float* __restrict residuals, int32_t* __restrict places) {
        for (size_t i = 0; i < rows; ++i) {
            const int branch = branches[i];
            const int q = branch >> 1;
            const float x = std::fabs(targets[i]);
            const int magnitude = magnitude_of(x, branch, choices[i]);
            const int position = position_of(q, magnitude);
            const int cell = (q * classes + column_classes[i]) * 2 + (magnitude >= 2 ? 1 : 0);
            const int sign = targets[i] < 0.0F ? -1 : 1;
            const float offset = offsets[cell] * static_cast<float>(magnitude != 0);
            const float value = static_cast<float>(sign) * (static_cast<float>(position) + offset);
            indices[i] = sign * magnitude;
            errors[i] = value * steps[i] - weights[i];
            residuals[i] = x - static_cast<float>(position);
            places[i] = magnitude == 0 ? 4 * classes : cell;
        }
    }

    std::vector<float> residuals_;
    std::vector<int32_t> places_;
    std::vector<double> sums_;  // [kSums, cells + 1]
    std::vector<int64_t> counts_;
};

// Targets and classes of column j, in fine grid units, and its scale code: mean |k| after the rows' own scales are
// taken out, in codes per octave.
void measure_column(const Rounding& rounding, const FeedbackBlock& block, size_t j,
                    const std::vector<float>& row_scales, Settled& settled, Column& column) {
    const size_t rows = block.rows;
    const float* row_steps = block.row_steps + block.groups[j];
    for (size_t i = 0; i < rows; ++i) settled.steps[i] = block.column_steps[j] * row_steps[i * block.group_count];
    divide(block.targets + j * rows, settled.steps.data(), column.targets.data(), rows);
    const double mean =
        0.5 * sum_of_magnitudes(column.targets.data(), row_scales.data(), rows) / static_cast<double>(rows);
    int code = 0;
    if (mean > 1e-9) code = std::max(0L, std::lround(std::log2(mean) * block.codes_per_octave + block.zero_code));
    block.column_codes[j] = code;
    classify(block.row_codes, code, block.shift, rounding.classes(), column.classes.data(), rows);
}

}  // namespace

void quantize_block(const RoundingModel& model, const FeedbackBlock& block) {
    const size_t rows = block.rows;
    const Rounding rounding(model);
    Column column(rows, rounding.states());
    Settled settled(rows, model.classes);
    std::vector<float> row_scales(rows);
    for (size_t i = 0; i < rows; ++i)
        row_scales[i] = std::exp2(-static_cast<float>(block.row_codes[i]) / static_cast<float>(block.codes_per_octave));
    for (size_t j = block.columns; j-- > 0;) {
        measure_column(rounding, block, j, row_scales, settled, column);
        search_path(rounding, column);
        float* error = block.errors + j * rows;
        settled.settle(column, model.offsets, model.classes, block.weights + j * rows, block.indices + j * rows, error);
        if (block.factor == nullptr) continue;
        for (size_t i = 0; i < j; ++i)
            subtract_scaled(block.targets + i * rows, error, block.factor[j * block.columns + i], rows);
    }
    settled.add_to(block.residual_sums, block.residual_counts);
}

}  // namespace trueaxis
