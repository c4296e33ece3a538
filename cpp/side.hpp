// Side information: short sequences of integers through an adaptive binary range coder.
//
//   integers, each with a context ─▶ binary decisions with adaptive probabilities ─▶ bytes
//
// An integer is a zero flag, a sign, and |v| - 1 in Exp-Golomb form whose prefix and first mantissa bit are adaptive.
// Probabilities average a fast and a slow estimate that begin by counting. References: Krichevsky & Trofimov 1981
// (counts); Martin 1979 (range coding); the carry-propagating binary coder of LZMA; CABAC (Marpe et al. 2003) for
// binarization with contexts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

constexpr int32_t kLargestInteger = (1 << 30) - 1;

// contexts [count]; throws std::invalid_argument for a value beyond +-(2^30 - 1).
std::vector<uint8_t> encode_integers(const int32_t* values, const uint8_t* contexts, size_t count);

// Throws std::invalid_argument on bytes that encode_integers cannot have written for these contexts.
void decode_integers(const uint8_t* data, size_t bytes, const uint8_t* contexts, size_t count, int32_t* values);

}  // namespace trueaxis
