// Side information: short arrays of integers (steps, scale codes, tables) with an adaptive binary range coder.
//
//   integer ─▶ is it zero · sign · unary exponent · first mantissa bit (adaptive) · other bits (bypass) ─▶ bytes
//
// Every value comes with a context 0 … 255; each context has adaptive bits of its own. A probability is the mean of a
// fast and a slow estimate (rates 1/16 and 1/128), both of which start with faster rates so that short arrays learn
// too. Decoding is integers only.
//
// References: Martin, Range encoding (1979); the carry handling of LZMA (Pavlov); Marpe, Schwarz and Wiegand 2003 for
// CABAC; VVC (H.266, 2020) for two-rate estimation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace trueaxis {

constexpr int kExponentLimit = 30;  // |value| < 2^30

// Both spans have the same length; throws std::invalid_argument for |value| >= 2^30.
std::vector<uint8_t> encode_integers(std::span<const int32_t> values, std::span<const uint8_t> contexts);

// One value per context; throws std::invalid_argument unless `bytes` is consumed exactly.
void decode_integers(std::span<const uint8_t> bytes, std::span<const uint8_t> contexts, int32_t* values);

}  // namespace trueaxis
