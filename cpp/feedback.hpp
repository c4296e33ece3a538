// Noise feedback inside one block of columns: the sequential inner loop of quantization.
//
//   targets [B, m] ─▶ visit columns last to first: choose k, feed the error to the columns still to come ─▶ k, errors
//
// The caller (quantize/feedback.py) applies the errors of a whole block to all remaining columns as one matrix product.
//
// References: GPTQ (arXiv:2210.17323) for error feedback; noise-shaping quantization by successive cancellation and the
// column order of the project's theory notes; rate-aware rounding as in RDOQ of video codecs (Karczewicz et al. 2008).
#pragma once

#include <cstddef>
#include <cstdint>

#include "viterbi.hpp"

namespace trueaxis {

// One block of B columns over m rows. `targets` becomes the quantization targets actually used.
struct FeedbackBlock {
    size_t columns;             // B
    size_t rows;                // m
    const float* weights;       // [B, m] the matrix itself
    float* targets;             // [B, m] w_j less the feedback of columns outside the block
    const float* factor;        // [B, B] C_ij / C_jj for i > j (other entries are not read); null for no feedback
    const float* column_steps;  // [B] fine steps
    const float* row_steps;     // [m, groups]
    const int32_t* groups;      // [B] group of each column
    size_t group_count;
    const int32_t* row_codes;  // [m] scale codes of the rows
    int shift;                 // class = (row code + column code) >> shift
    int codes_per_octave;      // scale codes per octave
    int zero_code;             // scale code of mean |k| = 1
    int32_t* indices;          // out [B, m]
    float* errors;             // out [B, m] e = ŵ − w
    int32_t* column_codes;     // out [B]
    double* residual_sums;     // in/out [2, classes, 2] Σ (|x| − |u|) over |k| = 1 and |k| >= 2, per quantizer
    double* residual_counts;   // in/out [2, classes, 2]
};

void quantize_block(const RoundingModel& model, const FeedbackBlock& block);

}  // namespace trueaxis
