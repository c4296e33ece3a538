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

// What settling a column needs besides the column: buffers of one thread, and residuals summed apart for odd rows.
struct Settled {
    std::vector<float> steps;      // [m] column step * row step
    std::vector<float> residuals;  // [m] |x| - |u|
    std::vector<int32_t> cells;    // [m] (q * classes + class) * 2 + (|k| >= 2)
    std::vector<double> sums;      // [2, cells]
    std::vector<int64_t> counts;   // [2, cells]
    Settled(size_t rows, int classes)
        : steps(rows), residuals(rows), cells(rows), sums(8 * static_cast<size_t>(classes)), counts(sums.size()) {}
};

// Indices, errors and residuals of the path found.
CLONES void settle(const Column& column, const float* offsets, int classes, const float* weights, Settled& settled,
                   int32_t* indices, float* errors) {
    const size_t rows = column.rows();
    const float* targets = column.targets.data();
    const uint8_t* branches = column.branches.data();
    const uint8_t* choices = column.choices.data();
    const uint8_t* columns_classes = column.classes.data();
    const float* steps = settled.steps.data();
    float* residuals = settled.residuals.data();
    int32_t* cells = settled.cells.data();
    for (size_t i = 0; i < rows; ++i) {
        const int branch = branches[i];
        const int q = branch >> 1;
        const float x = std::fabs(targets[i]);
        const int magnitude = magnitude_of(x, branch, choices[i]);
        const int position = position_of(q, magnitude);
        const int cell = (q * classes + columns_classes[i]) * 2 + (magnitude >= 2 ? 1 : 0);
        const float offset = magnitude == 0 ? 0.0F : offsets[cell];
        const float value = static_cast<float>(position) + offset;
        const bool negative = targets[i] < 0.0F;
        indices[i] = negative ? -magnitude : magnitude;
        errors[i] = (negative ? -value : value) * steps[i] - weights[i];
        residuals[i] = x - static_cast<float>(position);
        cells[i] = magnitude == 0 ? -1 : cell;
    }
}

void add_residuals(Settled& settled) {
    const size_t half = settled.sums.size() / 2;
    for (size_t i = 0; i < settled.cells.size(); ++i) {
        if (settled.cells[i] < 0) continue;
        const size_t at = static_cast<size_t>(settled.cells[i]) + (i % 2) * half;
        settled.sums[at] += static_cast<double>(settled.residuals[i]);
        ++settled.counts[at];
    }
}

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
        settle(column, model.offsets, model.classes, block.weights + j * rows, settled, block.indices + j * rows,
               error);
        add_residuals(settled);
        if (block.factor == nullptr) continue;
        for (size_t i = 0; i < j; ++i)
            subtract_scaled(block.targets + i * rows, error, block.factor[j * block.columns + i], rows);
    }
    const size_t cells = settled.sums.size() / 2;
    for (size_t cell = 0; cell < cells; ++cell) {
        block.residual_sums[cell] += settled.sums[cell] + settled.sums[cell + cells];
        block.residual_counts[cell] += static_cast<double>(settled.counts[cell] + settled.counts[cell + cells]);
    }
}

}  // namespace trueaxis
