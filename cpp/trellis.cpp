// Trellis codes and the reconstruction of values; see trellis.hpp.
#include "trellis.hpp"

#include <stdexcept>
#include <string>

namespace trueaxis {
namespace {

// Octal parity-check polynomials (h0, h1) of 1, 4, 8, 16, 32 and 64 states.
constexpr uint32_t kCodes[kTrellisCount][2] = {{0, 0}, {05, 02}, {013, 04}, {023, 04}, {045, 010}, {0103, 024}};

void reconstruct_column(const Segment& segment, const Reconstruction& grid, size_t column, float* values) {
    const int32_t group = grid.column_groups[column];
    if (group < 0 || static_cast<size_t>(group) >= grid.groups)
        throw std::invalid_argument("column " + std::to_string(column) + " is in group " + std::to_string(group) +
                                    " but there are row steps for " + std::to_string(grid.groups) + " groups");
    const int32_t* indices = segment.indices + column * segment.rows;
    const float* row_steps = grid.row_steps + group;
    const float column_step = grid.column_steps[column];
    const int32_t column_code = segment.column_codes[column];
    uint32_t state = 0;
    for (size_t row = 0; row < segment.rows; ++row) {
        const int32_t k = indices[row];
        const uint32_t quantizer = state & 1U;
        float position = static_cast<float>(fine_index(k, quantizer));
        if (k != 0) {
            const int cls = class_of(segment.row_codes[row], column_code, segment.shift, grid.classes);
            const size_t cell = (quantizer * static_cast<size_t>(grid.classes) + cls) * 2;
            const float offset = static_cast<float>(grid.offsets[cell + (magnitude_of(k) >= 2 ? 1 : 0)]) / 64.0F;
            position += k < 0 ? -offset : offset;
        }
        const float step = column_step * row_steps[row * grid.groups];
        values[row] = position * step;
        state = segment.trellis.next(state, k);
    }
}

}  // namespace

Trellis trellis_of(int identifier) {
    if (identifier < 0 || identifier >= kTrellisCount)
        throw std::invalid_argument("trellis " + std::to_string(identifier) + " is unknown; this version has 0 to " +
                                    std::to_string(kTrellisCount - 1));
    return {kCodes[identifier][1] >> 1, kCodes[identifier][0] >> 1};
}

void reconstruct(const Segment& segment, const Reconstruction& grid, float* values) {
    for (size_t column = 0; column < segment.columns; ++column)
        reconstruct_column(segment, grid, column, values + column * segment.rows);
}

}  // namespace trueaxis
