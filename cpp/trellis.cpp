// Trellis state machine and reconstruction; see trellis.hpp.
#include "trellis.hpp"

#include <stdexcept>

namespace trueaxis {

const Code& code_of(int trellis) {
    if (trellis < 0 || trellis >= kCodeCount) throw std::invalid_argument("trellis: unknown identifier");
    return kCodes[trellis];
}

void reconstruct(const Segment& segment, const int32_t* indices, const Steps& steps, float* values) {
    const Trellis trellis(segment.trellis);
    for (size_t j = 0; j < segment.columns; ++j) {
        uint32_t state = 0;
        const auto group = static_cast<size_t>(steps.groups[j]);
        for (size_t i = 0; i < segment.rows; ++i) {
            const int32_t k = indices[j * segment.rows + i];
            const int q = Trellis::quantizer(state);
            const int32_t sign = (k > 0) - (k < 0);
            float value = static_cast<float>(2 * k - q * sign);
            if (k != 0) {
                const auto cls = static_cast<size_t>(segment.class_of(i, j, steps.classes));
                const size_t cell = (static_cast<size_t>(q) * steps.classes + cls) * 2 + (k > 1 || k < -1 ? 1 : 0);
                value += static_cast<float>(sign) * (static_cast<float>(steps.offsets[cell]) / 64.0F);
            }
            const float step = steps.column_steps[j] * steps.row_steps[i * steps.group_count + group];
            values[j * segment.rows + i] = value * step;
            state = trellis.next(state, k);
        }
    }
}

}  // namespace trueaxis
