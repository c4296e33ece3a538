// Trellis-coded quantization of one column: the path of least error² + λ · bits through the trellis.
//
//   x [m], classes [m] ─▶ branch costs [m, 4] ─▶ add, compare, select ─▶ trace back ─▶ k [m]
//
// A row offers four branches, one per quantizer q and parity p of k; each takes the cheapest k of its parity among the
// two neighbours of x and zero. Costs are float32 in one fixed order, so that all instruction sets find the same path;
// of equal paths the even parity wins, of equal end states the lowest.
//
// References: Viterbi 1967; Marcellin & Fischer 1990; rate terms as in dependent quantization (Schwarz et al. 2019).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

// What rounding knows about the coder and the grid. Arrays are owned by the caller.
struct RoundingModel {
    const float* bits;             // [2, classes, K + 2] code length of |k| = 0..K with its sign, then of an escape
    const float* offsets;          // [2, classes, 2] reconstruction offset of |k| = 1 and |k| >= 2, in fine grid units
    const uint8_t* escape_orders;  // [classes] Exp-Golomb order of escapes
    int classes;
    int max_magnitude;
    float lambda;  // fine grid units squared per bit; 0 rounds to the nearest point
    int trellis;
};

// Grid point of |k| in units of the fine grid.
inline int position_of(int quantizer, int magnitude) { return magnitude == 0 ? 0 : 2 * magnitude - quantizer; }

// The model as look-up tables: the rate of every |k| up to K.
//
// Errors are those to the grid points: thresholds that followed the offsets, which follow the thresholds, would drift
// toward cells of equal occupation, which is the best quantizer for a coder without entropy coding.
class Rounding {
   public:
    explicit Rounding(const RoundingModel& model);

    int states() const { return states_; }
    int trellis() const { return model_.trellis; }
    int max_magnitude() const { return model_.max_magnitude; }
    int table(int quantizer, int cls) const { return (quantizer * model_.classes + cls) * stride_; }
    int stride() const { return stride_; }
    int classes() const { return model_.classes; }
    const float* rates() const { return rates_.data(); }  // λ · bits at table(q, class) + |k|
    float rate(int quantizer, int cls, int magnitude) const;

   private:
    RoundingModel model_;
    int states_;
    int stride_;
    std::vector<float> rates_;
};

// Buffers that one thread uses again for every column.
struct Column {
    std::vector<float> targets;      // [m] x in fine grid units
    std::vector<uint8_t> classes;    // [m]
    std::vector<float> costs;        // [m, 4] of the branches 2q + p
    std::vector<uint8_t> choices;    // [m, 4] packed two bits each: 0 = below, 1 = above, 2 = zero
    std::vector<uint8_t> decisions;  // [m, states / 8]
    std::vector<uint8_t> branches;   // [m] the branch taken, 2q + p
    explicit Column(size_t rows, int states);
    size_t rows() const { return targets.size(); }
};

// Magnitude below x >= 0 in quantizer q; the one above it is one more. |k| stays within the coder's range of 2^24.
inline int magnitude_below(float x, int quantizer) {
    constexpr float largest = 16777215.0F;
    const float below = (x + static_cast<float>(quantizer)) * 0.5F;
    return static_cast<int>(below < largest ? below : largest);
}

// Magnitude that a branch stands for, given the row's packed choices.
inline int magnitude_of(float x, int branch, int choices) {
    const int choice = choices >> (2 * branch) & 3;
    const int magnitude = magnitude_below(x, branch >> 1) + choice;
    return choice == 2 ? 0 : magnitude;
}

// Fills `branches`, given targets and classes.
void search_path(const Rounding& rounding, Column& column);

}  // namespace trueaxis
