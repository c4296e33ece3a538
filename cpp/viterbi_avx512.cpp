// Viterbi kernels, AVX-512: 16 rows of branch costs at a time; 16 states to a register. See viterbi.hpp.
#include "viterbi_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

#include "trellis.hpp"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2")))

namespace trueaxis {
namespace {

constexpr int kWidth = 16;

TARGET inline __m512i lanes_of(const uint32_t* lanes) { return _mm512_loadu_si512(lanes); }

// Successors 0 .. half - 1 come from even states, the others from odd ones; parity moves the source by `a`.
template <int kTrellis>
TARGET void forward(const float* costs, size_t rows, float* paths, uint8_t* decisions) {
    constexpr Code code = kCodes[kTrellis];
    constexpr int registers = code.states / kWidth;
    constexpr int half = registers / 2;
    constexpr uint32_t a = code.on_parity();
    constexpr uint32_t b = code.on_state() & (code.states / 2 - 1);
    uint32_t even_lanes[kWidth];
    uint32_t odd_lanes[kWidth];
    uint32_t moved_lanes[kWidth];
    for (uint32_t l = 0; l < kWidth; ++l) {
        even_lanes[l] = 2 * l;
        odd_lanes[l] = 2 * (l ^ (b % kWidth)) + 1;
        moved_lanes[l] = l ^ (a % kWidth);
    }
    const __m512i to_even = lanes_of(even_lanes);
    const __m512i to_odd = lanes_of(odd_lanes);
    const __m512i to_moved = lanes_of(moved_lanes);
    __m512 path[registers];
    for (int j = 0; j < registers; ++j) path[j] = _mm512_loadu_ps(paths + kWidth * j);
    for (size_t i = 0; i < rows; ++i) {
        __m512 from[registers];
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) {
            const int other = j ^ static_cast<int>(b / kWidth);
            from[j] = _mm512_permutex2var_ps(path[2 * j], to_even, path[2 * j + 1]);
            from[half + j] = _mm512_permutex2var_ps(path[2 * other], to_odd, path[2 * other + 1]);
        }
        __m512 cost[4];
#pragma GCC unroll 4
        for (int branch = 0; branch < 4; ++branch) cost[branch] = _mm512_set1_ps(costs[4 * i + branch]);
#pragma GCC unroll 16
        for (int j = 0; j < registers; ++j) {
            const int q = j / half;
            const __m512 even = _mm512_add_ps(from[j], cost[2 * q]);
            const __m512 moved = _mm512_permutexvar_ps(to_moved, from[j ^ static_cast<int>(a / kWidth)]);
            const __m512 odd = _mm512_add_ps(moved, cost[2 * q + 1]);
            _store_mask16(reinterpret_cast<__mmask16*>(decisions + 2 * j), _mm512_cmp_ps_mask(odd, even, _CMP_LT_OQ));
            path[j] = _mm512_min_ps(odd, even);
        }
        decisions += 2 * registers;
    }
    for (int j = 0; j < registers; ++j) _mm512_storeu_ps(paths + kWidth * j, path[j]);
}

// [4] registers of 16 rows to [16 rows, 4].
TARGET inline void store_transposed(const __m512 (&cost)[4], float* out) {
    const __m512 even_low = _mm512_unpacklo_ps(cost[0], cost[1]);
    const __m512 even_high = _mm512_unpackhi_ps(cost[0], cost[1]);
    const __m512 odd_low = _mm512_unpacklo_ps(cost[2], cost[3]);
    const __m512 odd_high = _mm512_unpackhi_ps(cost[2], cost[3]);
    const __m512 quarter[4] = {_mm512_shuffle_ps(even_low, odd_low, 0x44), _mm512_shuffle_ps(even_low, odd_low, 0xEE),
                               _mm512_shuffle_ps(even_high, odd_high, 0x44),
                               _mm512_shuffle_ps(even_high, odd_high, 0xEE)};
    const __m512 low01 = _mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44);
    const __m512 high01 = _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xEE);
    const __m512 low23 = _mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xEE);
    _mm512_storeu_ps(out, _mm512_shuffle_f32x4(low01, low23, 0x88));
    _mm512_storeu_ps(out + 16, _mm512_shuffle_f32x4(low01, low23, 0xDD));
    _mm512_storeu_ps(out + 32, _mm512_shuffle_f32x4(high01, high23, 0x88));
    _mm512_storeu_ps(out + 48, _mm512_shuffle_f32x4(high01, high23, 0xDD));
}

}  // namespace

TARGET void branches_avx512(const Rounding& rounding, Column& column, size_t first, size_t last) {
    const float* rates = rounding.rates();
    const __m512 limit = _mm512_set1_ps(static_cast<float>(rounding.max_magnitude()));
    const __m512 highest = _mm512_set1_ps(static_cast<float>(rounding.max_magnitude() - 1));
    const __m512i stride = _mm512_set1_epi32(rounding.stride());
    const __m512i one = _mm512_set1_epi32(1);
    const __m512 zeros = _mm512_setzero_ps();
    size_t i = first;
    for (; i + kWidth <= last; i += kWidth) {
        const __m512 x = _mm512_abs_ps(_mm512_loadu_ps(column.targets.data() + i));
        const __m512i cls =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(column.classes.data() + i)));
        __m512i table = _mm512_mullo_epi32(cls, stride);
        __m512 cost[4];
        __m512i choices = _mm512_setzero_si512();
        __mmask16 escaped = 0;
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
            const __m512 shifted = q == 0 ? x : _mm512_add_ps(x, _mm512_set1_ps(1.0F));
            const __m512 below = _mm512_roundscale_ps(_mm512_mul_ps(shifted, _mm512_set1_ps(0.5F)),
                                                      _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
            escaped |= _mm512_cmp_ps_mask(below, limit, _CMP_NLT_UQ);
            const __m512i magnitude = _mm512_cvttps_epi32(_mm512_min_ps(below, highest));
            const __m512i at = _mm512_add_epi32(table, magnitude);
            const __m512 twice = _mm512_add_ps(below, below);
            const __m512 position = _mm512_max_ps(_mm512_sub_ps(twice, _mm512_set1_ps(static_cast<float>(q))), zeros);
            const __m512 error_below = _mm512_sub_ps(x, position);
            const __m512 error_above =
                _mm512_sub_ps(x, _mm512_add_ps(twice, _mm512_set1_ps(static_cast<float>(2 - q))));
            const __m512 cost_below =
                _mm512_add_ps(_mm512_mul_ps(error_below, error_below), _mm512_i32gather_ps(at, rates, 4));
            const __m512 cost_above =
                _mm512_add_ps(_mm512_mul_ps(error_above, error_above), _mm512_i32gather_ps(at, rates + 1, 4));
            const __m512 cost_zero = _mm512_add_ps(_mm512_mul_ps(x, x), _mm512_i32gather_ps(table, rates, 4));
            const __mmask16 odd = _mm512_test_epi32_mask(magnitude, one);
            const __m512 even = _mm512_mask_blend_ps(odd, cost_below, cost_above);
            const __mmask16 zero = _mm512_cmp_ps_mask(cost_zero, even, _CMP_LT_OQ);
            cost[2 * q] = _mm512_min_ps(cost_zero, even);
            cost[2 * q + 1] = _mm512_mask_blend_ps(odd, cost_above, cost_below);
            // 2 bits for the even choice, then 2 for the odd one
            __m512i found = _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(4), one);
            found = _mm512_mask_ternarylogic_epi32(found, zero, _mm512_set1_epi32(4), _mm512_set1_epi32(2), 0xEA);
            choices = _mm512_or_si512(choices, _mm512_slli_epi32(found, 4 * q));
            table = _mm512_add_epi32(table, _mm512_set1_epi32(rounding.table(1, 0)));
        }
        store_transposed(cost, column.costs.data() + 4 * i);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(column.choices.data() + i), _mm512_cvtepi32_epi8(choices));
        for (uint32_t rest = escaped; rest != 0; rest &= rest - 1)
            branch_row(rounding, column, i + __builtin_ctz(rest));
    }
    for (; i < last; ++i) branch_row(rounding, column, i);
}

ForwardKernel forward_avx512(int trellis) {
    switch (trellis) {
        case 4:
            return forward<4>;
        case 5:
            return forward<5>;
        case 6:
            return forward<6>;
        case 7:
            return forward<7>;
        default:
            return forward_avx2(trellis);
    }
}

}  // namespace trueaxis
#endif
