// Trellis and scale classes: which quantizer and which table each index of a column is read with.
//
//   k_0, k_1, … down a column ─▶ state (from 0) ─▶ quantizer q = state & 1 ─▶ fine index u = 2k or 2k − sgn k
//
// Quantizer 0 holds the even multiples of the fine step, quantizer 1 the odd multiples and zero; the parity of k drives
// the state. Identifier 0 is the scalar quantizer: one state, always quantizer 0.
//
// References: Ungerboeck, Channel coding with multilevel/phase signals (1982), and the tables of 1987; Marcellin and
// Fischer, Trellis coded quantization (1990); dependent quantization in VVC (H.266, 2020).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace trueaxis {

constexpr int kTrellisCount = 6;
constexpr int kLargestShift = 31;

struct Trellis {
    uint32_t parity_taps = 0;  // h1 >> 1
    uint32_t state_taps = 0;   // h0 >> 1

    uint32_t next(uint32_t state, int32_t k) const {
        const uint32_t odd = 0U - (static_cast<uint32_t>(k) & 1U);
        const uint32_t second = 0U - (state & 1U);
        return (state >> 1) ^ (odd & parity_taps) ^ (second & state_taps);
    }
};

// Trellis of an identifier; throws std::invalid_argument for an unknown one.
Trellis trellis_of(int identifier);

inline int class_of(int32_t row_code, int32_t column_code, int shift, int classes) {
    const int64_t code = (static_cast<int64_t>(row_code) + column_code) >> shift;
    return static_cast<int>(std::clamp<int64_t>(code, 0, classes - 1));
}

inline int64_t fine_index(int32_t k, uint32_t quantizer) {
    const int64_t sign = (k > 0) - (k < 0);
    return 2 * static_cast<int64_t>(k) - (quantizer != 0 ? sign : 0);
}

// |k| without overflow.
inline uint32_t magnitude_of(int32_t k) { return k < 0 ? 0U - static_cast<uint32_t>(k) : static_cast<uint32_t>(k); }

// A set of columns of one matrix in file order; arrays are owned by the caller.
struct Segment {
    const int32_t* indices;       // k [columns, rows], or null where they are to be decoded
    const int32_t* row_codes;     // [rows]
    const int32_t* column_codes;  // [columns]
    size_t rows;
    size_t columns;
    int shift;  // class = clamp((row code + column code) >> shift)
    Trellis trellis;
};

// What turns integers into values; arrays are owned by the caller.
struct Reconstruction {
    const int8_t* offsets;         // [2, classes, 2] for |k| = 1 and |k| >= 2, in 1/64 of the fine grid
    int classes;                   // at least 1
    const float* column_steps;     // [columns]
    const float* row_steps;        // [rows, groups]
    const int32_t* column_groups;  // [columns]
    size_t groups;
};

// values [columns, rows] = (u + sgn k · offset / 64) · (column step · row step), each operation rounded to float32.
void reconstruct(const Segment& segment, const Reconstruction& grid, float* values);

}  // namespace trueaxis
