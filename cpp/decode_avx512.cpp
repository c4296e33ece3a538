// Decoding kernel, AVX-512: 32 lanes in two registers, one or two strips side by side. See decode.hpp.
#include "decode_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,bmi,popcnt")))

namespace trueaxis {
namespace {

constexpr int kHalf = 16;

// Offsets of a strip's classes, four int8 each, and its registers; loaded once per run of rows.
struct Lanes {
    __m512i states[2];
    __m512i trellis[2];
    __m512i codes[2];
    __m512 steps[2];
    __mmask16 active[2];
    __m512i offsets[4];
};

TARGET inline void load_lanes(const Strip& strip, Lanes& lanes) {
    const uint32_t active = strip.width == kMaxLanes ? ~0U : (1U << strip.width) - 1;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        lanes.states[h] = _mm512_load_si512(strip.states + kHalf * h);
        lanes.trellis[h] = _mm512_load_si512(strip.trellis + kHalf * h);
        lanes.codes[h] = _mm512_load_si512(strip.codes + kHalf * h);
        lanes.steps[h] = _mm512_load_ps(strip.steps + kHalf * h);
        lanes.active[h] = static_cast<__mmask16>(active >> (kHalf * h));
    }
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) lanes.offsets[part] = _mm512_loadu_si512(strip.packed_offsets + kHalf * part);
}

// 64-entry look-up in registers.
TARGET inline __m512i offsets_of(const Lanes& lanes, __m512i cls) {
    const __m512i low = _mm512_permutex2var_epi32(lanes.offsets[0], cls, lanes.offsets[1]);
    const __m512i high = _mm512_permutex2var_epi32(lanes.offsets[2], cls, lanes.offsets[3]);
    return _mm512_mask_blend_epi32(_mm512_test_epi32_mask(cls, _mm512_set1_epi32(32)), low, high);
}

// (u ± offset), exact in 1/64.
TARGET inline __m512 value_of(const Lanes& lanes, __m512i cls, __mmask16 q, __m512i k) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i one = _mm512_set1_epi32(1);
    const __mmask16 positive = _mm512_cmpgt_epi32_mask(k, zero);
    const __mmask16 negative = _mm512_movepi32_mask(k);
    __m512i position = _mm512_add_epi32(k, k);
    position = _mm512_mask_sub_epi32(position, positive & q, position, one);
    position = _mm512_mask_add_epi32(position, negative & q, position, one);
    const __mmask16 beyond = _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(k), one);
    __m512i shift = _mm512_maskz_set1_epi32(q, 16);
    shift = _mm512_mask_add_epi32(shift, beyond, shift, _mm512_set1_epi32(8));
    const __m512i offset = _mm512_srai_epi32(_mm512_sllv_epi32(offsets_of(lanes, cls), shift), 24);
    __m512i fine = _mm512_slli_epi32(position, 6);
    fine = _mm512_mask_add_epi32(fine, positive, fine, offset);
    fine = _mm512_mask_sub_epi32(fine, negative, fine, offset);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(fine), _mm512_set1_ps(1.0F / 64.0F));
}

TARGET inline __m256i to_bfloat16(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

// Escaped lanes one by one: their k, parity and value.
TARGET __attribute__((noinline)) void settle_escapes(const Shared& shared, Strip& strip, int32_t row_code,
                                                     uint32_t escaped, uint32_t quantizers, uint32_t& odd,
                                                     __m512 (&values)[2]) {
    alignas(64) float value[kMaxLanes];
    _mm512_store_ps(value, values[0]);
    _mm512_store_ps(value + kHalf, values[1]);
    for (; escaped != 0; escaped &= escaped - 1) {
        const int l = __builtin_ctz(escaped);
        const Escape escape = read_escape(shared, strip, static_cast<int>(quantizers >> l & 1U), row_code, l);
        odd = (odd & ~(1U << l)) | (static_cast<uint32_t>(escape.k) & 1U) << l;
        value[l] = escape.value;
    }
    values[0] = _mm512_load_ps(value);
    values[1] = _mm512_load_ps(value + kHalf);
}

template <Format kFormat>
TARGET inline void decode_row(const Shared& shared, Strip& strip, Lanes& lanes) {
    const int classes = shared.tables->classes();
    const int32_t row_code = *strip.row_codes;
    const __m512i low_bits = _mm512_set1_epi32(0xFFF);
    __m512i next[2];
    __m512 values[2];
    __mmask16 renewed[2];
    __mmask16 quantizer[2];
    uint32_t odd = 0;
    uint32_t escaped = 0;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        const __m512i code = _mm512_add_epi32(lanes.codes[h], _mm512_set1_epi32(row_code));
        const __m512i shifted = _mm512_sra_epi32(code, _mm_cvtsi32_si128(strip.shift));
        const __m512i cls =
            _mm512_min_epi32(_mm512_max_epi32(shifted, _mm512_setzero_si512()), _mm512_set1_epi32(classes - 1));
        const __mmask16 q = _mm512_test_epi32_mask(lanes.trellis[h], _mm512_set1_epi32(1));
        const __m512i table = _mm512_mask_add_epi32(cls, q, cls, _mm512_set1_epi32(classes));
        const __m512i slot = _mm512_and_si512(lanes.states[h], low_bits);
        const __m512i at = _mm512_or_si512(_mm512_slli_epi32(table, kProbabilityBits), slot);
        const __m512i entry = _mm512_i32gather_epi32(at, shared.lookup, 4);
        const __m512i product =
            _mm512_mullo_epi32(_mm512_srli_epi32(lanes.states[h], kProbabilityBits), _mm512_and_si512(entry, low_bits));
        next[h] = _mm512_add_epi32(product, _mm512_and_si512(_mm512_srli_epi32(entry, 12), low_bits));
        renewed[h] = _mm512_mask_cmplt_epu32_mask(lanes.active[h], next[h], _mm512_set1_epi32(kStateFloor));
        const __m512i k = _mm512_srai_epi32(entry, 24);
        values[h] = value_of(lanes, cls, q, k);
        quantizer[h] = q;
        odd |= static_cast<uint32_t>(_mm512_test_epi32_mask(entry, _mm512_set1_epi32(1 << 24))) << (kHalf * h);
        const __mmask16 mark = _mm512_mask_cmpeq_epi32_mask(lanes.active[h], k, _mm512_set1_epi32(kEscapeMark));
        escaped |= static_cast<uint32_t>(mark) << (kHalf * h);
    }
    const uint32_t all_renewed = renewed[0] | static_cast<uint32_t>(renewed[1]) << kHalf;
    const __m512i words = _mm512_maskz_expand_epi16(all_renewed, _mm512_loadu_si512(strip.next));
    strip.next += 2 * static_cast<size_t>(__builtin_popcount(all_renewed));
    if (__builtin_expect(strip.next > strip.end, 0)) throw_truncated();
    if (__builtin_expect(escaped != 0, 0)) {
        const uint32_t quantizers = quantizer[0] | static_cast<uint32_t>(quantizer[1]) << kHalf;
        settle_escapes(shared, strip, row_code, escaped, quantizers, odd, values);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        const __m512i word =
            _mm512_cvtepu16_epi32(h == 0 ? _mm512_castsi512_si256(words) : _mm512_extracti64x4_epi64(words, 1));
        const __m512i state = _mm512_mask_or_epi32(next[h], renewed[h], _mm512_slli_epi32(next[h], 16), word);
        lanes.states[h] = _mm512_mask_mov_epi32(lanes.states[h], lanes.active[h], state);
        const __mmask16 parity = static_cast<__mmask16>(odd >> (kHalf * h));
        __m512i trellis = _mm512_srli_epi32(lanes.trellis[h], 1);
        trellis = _mm512_mask_xor_epi32(trellis, parity, trellis, _mm512_set1_epi32(strip.on_parity));
        lanes.trellis[h] = _mm512_mask_xor_epi32(trellis, quantizer[h], trellis, _mm512_set1_epi32(strip.on_state));
        const __m512 row_step =
            strip.group_count == 1
                ? _mm512_set1_ps(*strip.row_steps)
                : _mm512_i32gather_ps(_mm512_load_si512(strip.groups + kHalf * h), strip.row_steps, 4);
        const __m512 value = _mm512_mul_ps(values[h], _mm512_mul_ps(lanes.steps[h], row_step));
        if constexpr (kFormat == Format::kFloat32)
            _mm512_mask_storeu_ps(strip.out + 4 * kHalf * h, lanes.active[h], value);
        else
            _mm256_mask_storeu_epi16(strip.out + 2 * kHalf * h, lanes.active[h], to_bfloat16(value));
    }
    ++strip.row_codes;
    strip.row_steps += strip.group_count;
    strip.out += strip.row_bytes;
}

template <Format kFormat, int kStrips>
TARGET void decode(const Shared& shared, Strip* const* strips, size_t rows) {
    Strip strip[kStrips];
    Lanes lanes[kStrips];
#pragma GCC unroll 2
    for (int s = 0; s < kStrips; ++s) {
        strip[s] = *strips[s];
        load_lanes(strip[s], lanes[s]);
    }
    for (size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 2
        for (int s = 0; s < kStrips; ++s) decode_row<kFormat>(shared, strip[s], lanes[s]);
    }
#pragma GCC unroll 2
    for (int s = 0; s < kStrips; ++s) {
        for (int h = 0; h < 2; ++h) {
            _mm512_store_si512(strip[s].states + kHalf * h, lanes[s].states[h]);
            _mm512_store_si512(strip[s].trellis + kHalf * h, lanes[s].trellis[h]);
        }
        *strips[s] = strip[s];
    }
}

}  // namespace

DecodeKernel decode_kernel_avx512(Format format, int strips) {
    if (format == Format::kFloat32) return strips == 1 ? decode<Format::kFloat32, 1> : decode<Format::kFloat32, 2>;
    return strips == 1 ? decode<Format::kBfloat16, 1> : decode<Format::kBfloat16, 2>;
}

}  // namespace trueaxis
#endif
