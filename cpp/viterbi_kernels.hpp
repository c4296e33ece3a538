// The two kernels of the Viterbi search that have a variant per instruction set; see viterbi.hpp.
#pragma once

#include "viterbi.hpp"

namespace trueaxis {

constexpr size_t kCostBlock = 256;  // rows between renormalizations of path costs
constexpr int kPaddedStates = 8;    // path costs are padded to this many

// Costs and choices of rows [first, last), all four branches.
using BranchKernel = void (*)(const Rounding&, Column&, size_t first, size_t last);
// One row at a time of costs [rows, 4]: path costs [states] to those after the rows, decisions [rows, states / 8].
using ForwardKernel = void (*)(const float* costs, size_t rows, float* paths, uint8_t* decisions);

void branch_row(const Rounding& rounding, Column& column, size_t row);

ForwardKernel forward_avx2(int trellis);
ForwardKernel forward_avx512(int trellis);
void branches_avx2(const Rounding& rounding, Column& column, size_t first, size_t last);
void branches_avx512(const Rounding& rounding, Column& column, size_t first, size_t last);

}  // namespace trueaxis
