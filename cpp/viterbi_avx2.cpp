// Viterbi kernels, AVX2: 8 rows of branch costs at a time; 8 states to a register. See viterbi.hpp.
#include "viterbi_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

#include "trellis.hpp"

#define TARGET __attribute__((target("avx2")))

namespace trueaxis {
namespace {

constexpr int kWidth = 8;

TARGET inline __m256i lanes_of(const uint32_t* lanes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
}

TARGET inline int less(__m256 x, __m256 y) { return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_LT_OQ)); }

// 4 or 8 states in one register; lanes beyond the states repeat them.
template <int kTrellis>
TARGET void forward_small(const float* costs, size_t rows, float* paths, uint8_t* decisions) {
    constexpr Code code = kCodes[kTrellis];
    constexpr uint32_t half = code.states / 2;
    uint32_t even_lanes[kWidth];
    uint32_t odd_lanes[kWidth];
    uint32_t quantizers[kWidth];
    for (uint32_t l = 0; l < kWidth; ++l) {
        const uint32_t s = l % code.states;
        const uint32_t q = s / half;
        const uint32_t from = (s ^ (q ? code.on_state() : 0)) % half;
        even_lanes[l] = 2 * from + q;
        odd_lanes[l] = 2 * (from ^ code.on_parity()) + q;
        quantizers[l] = 2 * q;
    }
    const __m256i to_even = lanes_of(even_lanes);
    const __m256i to_odd = lanes_of(odd_lanes);
    const __m256i even_cost = lanes_of(quantizers);
    const __m256i odd_cost = _mm256_add_epi32(even_cost, _mm256_set1_epi32(1));
    __m256 path = _mm256_loadu_ps(paths);
    for (size_t i = 0; i < rows; ++i) {
        const __m256 cost = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(costs + 4 * i));
        const __m256 even =
            _mm256_add_ps(_mm256_permutevar8x32_ps(path, to_even), _mm256_permutevar_ps(cost, even_cost));
        const __m256 odd = _mm256_add_ps(_mm256_permutevar8x32_ps(path, to_odd), _mm256_permutevar_ps(cost, odd_cost));
        decisions[i] = static_cast<uint8_t>(less(odd, even));
        path = _mm256_min_ps(odd, even);
    }
    _mm256_storeu_ps(paths, path);
}

// Successors 0 .. half - 1 come from even states, the others from odd ones; parity moves the source by `a`.
template <int kTrellis>
TARGET void forward(const float* costs, size_t rows, float* paths, uint8_t* decisions) {
    constexpr Code code = kCodes[kTrellis];
    constexpr int registers = code.states / kWidth;
    constexpr int half = registers / 2;
    constexpr uint32_t a = code.on_parity();
    constexpr uint32_t b = code.on_state() & (code.states / 2 - 1);
    constexpr uint32_t order[kWidth] = {0, 1, 4, 5, 2, 3, 6, 7};  // where _mm256_shuffle_ps puts every second lane
    uint32_t even_lanes[kWidth];
    uint32_t odd_lanes[kWidth];
    uint32_t moved_lanes[kWidth];
    for (uint32_t l = 0; l < kWidth; ++l) {
        even_lanes[l] = order[l];
        odd_lanes[l] = order[l ^ (b % kWidth)];
        moved_lanes[l] = l ^ (a % kWidth);
    }
    const __m256i to_even = lanes_of(even_lanes);
    const __m256i to_odd = lanes_of(odd_lanes);
    const __m256i to_moved = lanes_of(moved_lanes);
    __m256 path[registers];
    for (int j = 0; j < registers; ++j) path[j] = _mm256_loadu_ps(paths + kWidth * j);
    for (size_t i = 0; i < rows; ++i) {
        __m256 from[registers];
#pragma GCC unroll 16
        for (int j = 0; j < half; ++j) {
            const int other = j ^ static_cast<int>(b / kWidth);
            from[j] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(path[2 * j], path[2 * j + 1], 0x88), to_even);
            from[half + j] =
                _mm256_permutevar8x32_ps(_mm256_shuffle_ps(path[2 * other], path[2 * other + 1], 0xDD), to_odd);
        }
        __m256 cost[4];
#pragma GCC unroll 4
        for (int branch = 0; branch < 4; ++branch) cost[branch] = _mm256_broadcast_ss(costs + 4 * i + branch);
#pragma GCC unroll 32
        for (int j = 0; j < registers; ++j) {
            const int q = j / half;
            const __m256 even = _mm256_add_ps(from[j], cost[2 * q]);
            const __m256 moved = _mm256_permutevar8x32_ps(from[j ^ static_cast<int>(a / kWidth)], to_moved);
            const __m256 odd = _mm256_add_ps(moved, cost[2 * q + 1]);
            decisions[j] = static_cast<uint8_t>(less(odd, even));
            path[j] = _mm256_min_ps(odd, even);
        }
        decisions += registers;
    }
    for (int j = 0; j < registers; ++j) _mm256_storeu_ps(paths + kWidth * j, path[j]);
}

// [4] registers of 8 rows to [8 rows, 4].
TARGET inline void store_transposed(const __m256 (&cost)[4], float* out) {
    const __m256 even_low = _mm256_unpacklo_ps(cost[0], cost[1]);
    const __m256 even_high = _mm256_unpackhi_ps(cost[0], cost[1]);
    const __m256 odd_low = _mm256_unpacklo_ps(cost[2], cost[3]);
    const __m256 odd_high = _mm256_unpackhi_ps(cost[2], cost[3]);
    const __m256 row0 = _mm256_shuffle_ps(even_low, odd_low, 0x44);
    const __m256 row1 = _mm256_shuffle_ps(even_low, odd_low, 0xEE);
    const __m256 row2 = _mm256_shuffle_ps(even_high, odd_high, 0x44);
    const __m256 row3 = _mm256_shuffle_ps(even_high, odd_high, 0xEE);
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(row0, row1, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(row2, row3, 0x20));
    _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(row0, row1, 0x31));
    _mm256_storeu_ps(out + 24, _mm256_permute2f128_ps(row2, row3, 0x31));
}

// The low byte of each of 8 lanes.
TARGET inline void store_bytes(__m256i lanes, uint8_t* out) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

}  // namespace

TARGET void branches_avx2(const Rounding& rounding, Column& column, size_t first, size_t last) {
    const float* rates = rounding.rates();
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    const __m256 limit = _mm256_set1_ps(static_cast<float>(rounding.max_magnitude()));
    const __m256 highest = _mm256_set1_ps(static_cast<float>(rounding.max_magnitude() - 1));
    const __m256i stride = _mm256_set1_epi32(rounding.stride());
    size_t i = first;
    for (; i + kWidth <= last; i += kWidth) {
        const __m256 x = _mm256_and_ps(_mm256_loadu_ps(column.targets.data() + i), magnitude_bits);
        const __m256i cls =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(column.classes.data() + i)));
        __m256i table = _mm256_mullo_epi32(cls, stride);
        __m256 cost[4];
        __m256i choices = _mm256_setzero_si256();
        int escaped = 0;
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
            const __m256 shifted = q == 0 ? x : _mm256_add_ps(x, _mm256_set1_ps(1.0F));
            const __m256 below = _mm256_floor_ps(_mm256_mul_ps(shifted, _mm256_set1_ps(0.5F)));
            escaped |= _mm256_movemask_ps(_mm256_cmp_ps(below, limit, _CMP_NLT_UQ));
            const __m256i magnitude = _mm256_cvttps_epi32(_mm256_min_ps(below, highest));
            const __m256i at = _mm256_add_epi32(table, magnitude);
            const __m256 twice = _mm256_add_ps(below, below);
            const __m256 position =
                _mm256_max_ps(_mm256_sub_ps(twice, _mm256_set1_ps(static_cast<float>(q))), _mm256_setzero_ps());
            const __m256 error_below = _mm256_sub_ps(x, position);
            const __m256 error_above =
                _mm256_sub_ps(x, _mm256_add_ps(twice, _mm256_set1_ps(static_cast<float>(2 - q))));
            const __m256 cost_below =
                _mm256_add_ps(_mm256_mul_ps(error_below, error_below), _mm256_i32gather_ps(rates, at, 4));
            const __m256 cost_above =
                _mm256_add_ps(_mm256_mul_ps(error_above, error_above), _mm256_i32gather_ps(rates + 1, at, 4));
            const __m256 cost_zero = _mm256_add_ps(_mm256_mul_ps(x, x), _mm256_i32gather_ps(rates, table, 4));
            const __m256 odd = _mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 31));  // the sign bit selects
            const __m256 even = _mm256_blendv_ps(cost_below, cost_above, odd);
            const __m256i zero = _mm256_castps_si256(_mm256_cmp_ps(cost_zero, even, _CMP_LT_OQ));
            cost[2 * q] = _mm256_min_ps(cost_zero, even);
            cost[2 * q + 1] = _mm256_blendv_ps(cost_above, cost_below, odd);
            // 2 bits for the even choice, then 2 for the odd one
            const __m256i parity = _mm256_and_si256(magnitude, _mm256_set1_epi32(1));
            const __m256i even_choice = _mm256_blendv_epi8(parity, _mm256_set1_epi32(2), zero);
            const __m256i odd_choice = _mm256_slli_epi32(_mm256_xor_si256(parity, _mm256_set1_epi32(1)), 2);
            choices = _mm256_or_si256(choices, _mm256_slli_epi32(_mm256_or_si256(even_choice, odd_choice), 4 * q));
            table = _mm256_add_epi32(table, _mm256_set1_epi32(rounding.table(1, 0)));
        }
        store_transposed(cost, column.costs.data() + 4 * i);
        store_bytes(choices, column.choices.data() + i);
        for (int rest = escaped; rest != 0; rest &= rest - 1) branch_row(rounding, column, i + __builtin_ctz(rest));
    }
    for (; i < last; ++i) branch_row(rounding, column, i);
}

ForwardKernel forward_avx2(int trellis) {
    switch (trellis) {
        case 1:
            return forward_small<1>;
        case 2:
            return forward_small<2>;
        case 3:
            return forward<3>;
        case 4:
            return forward<4>;
        case 5:
            return forward<5>;
        case 6:
            return forward<6>;
        default:
            return forward<7>;
    }
}

}  // namespace trueaxis
#endif
