// Trellis state machine and reconstruction: which quantizer a state uses, how an index drives it, what value it means.
//
// References: Ungerboeck 1982 and 1987 (codes of 4 to 64 states; those of 128 and 256 were searched for the least mean
// squared error of a uniform source); Marcellin & Fischer 1990 (trellis-coded quantization); dependent quantization of
// VVC (Schwarz et al. 2019) for the two quantizers: even multiples, and odd multiples with zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

// A run of columns of one matrix, each column contiguous.
struct Segment {
    size_t columns;
    size_t rows;
    const int32_t* row_codes;     // [rows]
    const int32_t* column_codes;  // [columns]
    int shift;
    int trellis;
    int32_t class_of(size_t row, size_t column, int classes) const {
        const int64_t code = (int64_t{row_codes[row]} + column_codes[column]) >> shift;
        if (code < 0) return 0;
        return code >= classes ? classes - 1 : static_cast<int32_t>(code);
    }
};

// Octal parity-check polynomials. Bit 1 of h1 is clear from 8 states on: the next quantizer is known a row early.
struct Code {
    int states;
    uint32_t h0, h1;
    constexpr uint32_t on_state() const { return h0 >> 1; }
    constexpr uint32_t on_parity() const { return h1 >> 1; }
};
constexpr Code kCodes[] = {{1, 0, 0},      {4, 05, 02},     {8, 013, 04},      {16, 023, 04},
                           {32, 045, 010}, {64, 0103, 024}, {128, 0327, 0124}, {256, 0753, 0304}};
constexpr int kCodeCount = sizeof(kCodes) / sizeof(kCodes[0]);
constexpr int kMostStates = 256;

const Code& code_of(int trellis);  // throws std::invalid_argument on an unknown id

class Trellis {
   public:
    explicit Trellis(int id) : on_parity_(code_of(id).on_parity()), on_state_(code_of(id).on_state()) {}
    static int quantizer(uint32_t state) { return static_cast<int>(state & 1U); }
    uint32_t on_parity() const { return on_parity_; }
    uint32_t on_state() const { return on_state_; }
    uint32_t next(uint32_t state, int32_t index) const {
        const uint32_t odd = static_cast<uint32_t>(index) & 1U;
        return (state >> 1) ^ ((0U - odd) & on_parity_) ^ ((0U - (state & 1U)) & on_state_);
    }

   private:
    uint32_t on_parity_;
    uint32_t on_state_;
};

struct Steps {
    const int8_t* offsets;  // [2, classes, 2] in 1/64 of the fine grid
    int classes;
    const float* column_steps;  // [columns]
    const float* row_steps;     // [rows, groups]
    const int32_t* groups;      // [columns]
    size_t group_count;
};

// values [columns, rows] = (u + sgn(k) * offset) * (column step * row step), plain float32 in this order.
void reconstruct(const Segment& segment, const int32_t* indices, const Steps& steps, float* values);

}  // namespace trueaxis
