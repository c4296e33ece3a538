// Decoding kernel, AVX-512: 32 lanes in two registers, one or two strips side by side. See decode.hpp.
#include "decode_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,bmi,popcnt")))

namespace trueaxis {
namespace {

constexpr int kHalf = 16;

// A strip's registers; loaded once per run of rows.
struct Lanes {
    __m512i states[2];
    __m512i trellis[2];
    __m512i codes[2];
    __m512 steps[2];
    __mmask16 active[2];
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
}

// The bfloat16 nearest to each value, ties to even, in the upper 16 bits.
TARGET inline __m512i rounded_to_bfloat16(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
}

TARGET inline __m256i to_bfloat16(__m512 value) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_to_bfloat16(value), 16));
}

// Scales half a row and writes its active lanes.
template <Format kFormat>
TARGET inline void store_half(const Strip& strip, int half, __mmask16 active, __m512 values, __m512 column_steps) {
    const __m512 row_step = strip.group_count == 1 ? _mm512_set1_ps(*strip.row_steps)
                                                   : _mm512_i32gather_ps(_mm512_load_si512(strip.groups + kHalf * half),
                                                                         strip.row_steps, 4);
    const __m512 scaled = _mm512_mul_ps(values, _mm512_mul_ps(column_steps, row_step));
    if constexpr (kFormat == Format::kFloat32)
        _mm512_mask_storeu_ps(strip.out + 4 * kHalf * half, active, scaled);
    else
        _mm256_mask_storeu_epi16(strip.out + 2 * kHalf * half, active, to_bfloat16(scaled));
}

TARGET inline void next_row(Strip& strip) {
    ++strip.row_codes;
    strip.row_steps += strip.group_count;
    strip.out += strip.row_bytes;
}

// What escaped lanes change: parities of k, and values.
struct Settled {
    uint32_t odd;
    __m512 values[2];
};

// Escaped lanes one by one. By value: a row's registers must not be forced into memory for the rare case.
TARGET __attribute__((noinline)) Settled settle_escapes(const Shared& shared, Strip& strip, int32_t row_code,
                                                        uint32_t escaped, uint32_t quantizers, Settled settled) {
    alignas(64) float value[kMaxLanes];
    _mm512_store_ps(value, settled.values[0]);
    _mm512_store_ps(value + kHalf, settled.values[1]);
    for (; escaped != 0; escaped &= escaped - 1) {
        const int l = __builtin_ctz(escaped);
        const Escape escape = read_escape(shared, strip, static_cast<int>(quantizers >> l & 1U), row_code, l);
        settled.odd = (settled.odd & ~(1U << l)) | (static_cast<uint32_t>(escape.k) & 1U) << l;
        value[l] = escape.value;
    }
    settled.values[0] = _mm512_load_ps(value);
    settled.values[1] = _mm512_load_ps(value + kHalf);
    return settled;
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
        const __m512i value_at = _mm512_add_epi32(_mm512_slli_epi32(table, kValueBits), k);
        values[h] = _mm512_i32gather_ps(value_at, strip.values - kEscapeMark, 4);
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
        const Settled settled =
            settle_escapes(shared, strip, row_code, escaped, quantizers, {odd, {values[0], values[1]}});
        odd = settled.odd;
        values[0] = settled.values[0];
        values[1] = settled.values[1];
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
        store_half<kFormat>(strip, h, lanes.active[h], values[h], lanes.steps[h]);
    }
    next_row(strip);
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

// 32 lanes as planes of 16 bits; see Narrow.
struct Planes {
    __m512i low;
    __m512i high;
    __m512i trellis;
    __m512 steps[2];  // of the even lanes, then of the odd ones
};

// Every second of 32 lanes, from lane 0 or 1 on.
TARGET inline __m512i every_second(const void* lanes, int first) {
    const __m512i places = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_epi32(_mm512_load_si512(lanes), _mm512_add_epi32(places, _mm512_set1_epi32(first)),
                                     _mm512_load_si512(static_cast<const uint8_t*>(lanes) + 64));
}

// Even and odd lanes to 32 lanes in order.
TARGET inline void interleave(const __m512 (&values)[2], float* lanes) {
    const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    _mm512_storeu_ps(lanes, _mm512_permutex2var_ps(values[0], first, values[1]));
    _mm512_storeu_ps(lanes + kHalf, _mm512_permutex2var_ps(values[0], second, values[1]));
}

// Bits [shift, shift + 16) of 32 lanes.
TARGET inline __m512i words_of(const uint32_t* lanes, int shift) {
    const __m256i first = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_load_si512(lanes), shift));
    const __m256i second = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_load_si512(lanes + kHalf), shift));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

TARGET inline void load_planes(const Strip& strip, Planes& planes) {
    planes.low = words_of(strip.states, 0);
    planes.high = words_of(strip.states, 16);
    planes.trellis = words_of(strip.trellis, 0);
    for (int h = 0; h < 2; ++h) planes.steps[h] = _mm512_castsi512_ps(every_second(strip.steps, h));
}

TARGET inline __m512i half_of(__m512i words, int half) {
    return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(words) : _mm512_extracti64x4_epi64(words, 1));
}

TARGET inline void store_planes(const Planes& planes, Strip& strip) {
    for (int h = 0; h < 2; ++h) {
        const __m512i high = _mm512_slli_epi32(half_of(planes.high, h), 16);
        _mm512_store_si512(strip.states + kHalf * h, _mm512_or_si512(high, half_of(planes.low, h)));
        _mm512_store_si512(strip.trellis + kHalf * h, half_of(planes.trellis, h));
    }
}

// The entry of each slot: binary search over 32 cumulative frequencies per quantizer.
TARGET inline __m512i search(const Narrow& table, __mmask32 q, __m512i slot) {
    const __m512i first = _mm512_load_si512(table.starts);
    const __m512i second = _mm512_load_si512(table.starts + 32);
    const __m512i middle = _mm512_mask_set1_epi16(_mm512_set1_epi16(static_cast<int16_t>(table.starts[16])), q,
                                                  static_cast<int16_t>(table.starts[48]));
    __m512i entry = _mm512_maskz_set1_epi16(q, 32);
    entry = _mm512_mask_add_epi16(entry, _mm512_cmple_epu16_mask(middle, slot), entry, _mm512_set1_epi16(16));
#pragma GCC unroll 4
    for (int step = 8; step > 0; step /= 2) {
        const __m512i above = _mm512_add_epi16(entry, _mm512_set1_epi16(static_cast<int16_t>(step)));
        const __m512i start = _mm512_permutex2var_epi16(first, above, second);
        entry = _mm512_mask_mov_epi16(entry, _mm512_cmple_epu16_mask(start, slot), above);
    }
    return entry;
}

TARGET __attribute__((noinline)) Settled settle_narrow_escapes(const Shared& shared, Strip& strip, int32_t row_code,
                                                               uint32_t escaped, uint32_t quantizers, Settled settled) {
    alignas(64) float lanes[kMaxLanes];
    interleave(settled.values, lanes);
    const Settled in_order{settled.odd, {_mm512_load_ps(lanes), _mm512_load_ps(lanes + kHalf)}};
    settled = settle_escapes(shared, strip, row_code, escaped, quantizers, in_order);
    _mm512_store_ps(lanes, settled.values[0]);
    _mm512_store_ps(lanes + kHalf, settled.values[1]);
    for (int h = 0; h < 2; ++h) settled.values[h] = _mm512_castsi512_ps(every_second(lanes, h));
    return settled;
}

// Scales even and odd lanes and writes the row.
template <Format kFormat>
TARGET inline void store_interleaved(const Strip& strip, const __m512 (&values)[2], const __m512 (&column_steps)[2]) {
    __m512 scaled[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        const __m512 row_step = strip.group_count == 1
                                    ? _mm512_set1_ps(*strip.row_steps)
                                    : _mm512_i32gather_ps(every_second(strip.groups, h), strip.row_steps, 4);
        scaled[h] = _mm512_mul_ps(values[h], _mm512_mul_ps(column_steps[h], row_step));
    }
    if constexpr (kFormat == Format::kFloat32) {
        interleave(scaled, reinterpret_cast<float*>(strip.out));
    } else {
        const __m512i even = _mm512_srli_epi32(rounded_to_bfloat16(scaled[0]), 16);
        const __m512i both = _mm512_mask_blend_epi16(0xAAAAAAAA, even, rounded_to_bfloat16(scaled[1]));
        _mm512_storeu_si512(strip.out, both);
    }
}

template <Format kFormat>
TARGET inline void decode_narrow_row(const Shared& shared, Strip& strip, Planes& planes) {
    const int32_t row_code = *strip.row_codes;
    const Narrow& table = strip.narrow[class_at(strip, row_code, 0, shared.tables->classes())];
    const __m512i ones = _mm512_set1_epi16(1);
    const __mmask32 q = _mm512_test_epi16_mask(planes.trellis, ones);
    const __m512i slot = _mm512_and_si512(planes.low, _mm512_set1_epi16(0xFFF));
    const __m512i entry = search(table, q, slot);
    const __m512i frequency = _mm512_permutex2var_epi16(_mm512_load_si512(table.frequencies), entry,
                                                        _mm512_load_si512(table.frequencies + 32));
    const __m512i start =
        _mm512_permutex2var_epi16(_mm512_load_si512(table.starts), entry, _mm512_load_si512(table.starts + 32));
    // frequency · (x >> 12) + slot − start in two planes
    const __m512i bias = _mm512_sub_epi16(slot, start);
    const __m512i shifted = _mm512_shldi_epi16(planes.high, planes.low, 4);
    const __m512i top = _mm512_srli_epi16(planes.high, 12);
    const __m512i low = _mm512_add_epi16(_mm512_mullo_epi16(frequency, shifted), bias);
    const __m512i carried =
        _mm512_add_epi16(_mm512_mulhi_epu16(frequency, shifted), _mm512_mullo_epi16(frequency, top));
    const __m512i high = _mm512_mask_add_epi16(carried, _mm512_cmplt_epu16_mask(low, bias), carried, ones);
    const __mmask32 renewed = _mm512_testn_epi16_mask(high, high);
    const __m512i words = _mm512_maskz_expand_epi16(renewed, _mm512_loadu_si512(strip.next));
    strip.next += 2 * static_cast<size_t>(__builtin_popcount(renewed));
    if (__builtin_expect(strip.next > strip.end, 0)) throw_truncated();
    planes.high = _mm512_mask_mov_epi16(high, renewed, low);
    planes.low = _mm512_mask_mov_epi16(low, renewed, words);

    __m512 values[2];  // of the even lanes, then of the odd ones
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        const __m512i at = h == 0 ? entry : _mm512_srli_epi32(entry, 16);  // the permutations read the low 5 bits
        const __m512 first =
            _mm512_permutex2var_ps(_mm512_load_ps(table.values), at, _mm512_load_ps(table.values + 16));
        const __m512 second =
            _mm512_permutex2var_ps(_mm512_load_ps(table.values + 32), at, _mm512_load_ps(table.values + 48));
        values[h] = _mm512_mask_mov_ps(first, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), second);
    }
    uint32_t odd = _mm512_testn_epi16_mask(entry, ones);  // k = entry − 15
    const __m512i within = _mm512_and_si512(entry, _mm512_set1_epi16(31));
    const uint32_t escaped = _mm512_cmpeq_epi16_mask(within, _mm512_set1_epi16(kNarrowEscape));
    if (__builtin_expect(escaped != 0, 0)) {
        const Settled settled =
            settle_narrow_escapes(shared, strip, row_code, escaped, q, {odd, {values[0], values[1]}});
        odd = settled.odd;
        values[0] = settled.values[0];
        values[1] = settled.values[1];
    }
    const __m512i by_parity = _mm512_maskz_set1_epi16(odd, static_cast<int16_t>(strip.on_parity));
    const __m512i by_state = _mm512_maskz_set1_epi16(q, static_cast<int16_t>(strip.on_state));
    planes.trellis =
        _mm512_ternarylogic_epi32(_mm512_srli_epi16(planes.trellis, 1), by_parity, by_state, 0x96);  // exclusive or
    store_interleaved<kFormat>(strip, values, planes.steps);
    next_row(strip);
}

template <Format kFormat, int kStrips>
TARGET void decode_narrow(const Shared& shared, Strip* const* strips, size_t rows) {
    Strip strip[kStrips];
    Planes planes[kStrips];
#pragma GCC unroll 2
    for (int s = 0; s < kStrips; ++s) {
        strip[s] = *strips[s];
        load_planes(strip[s], planes[s]);
    }
    for (size_t i = 0; i < rows; ++i) {
#pragma GCC unroll 2
        for (int s = 0; s < kStrips; ++s) decode_narrow_row<kFormat>(shared, strip[s], planes[s]);
    }
#pragma GCC unroll 2
    for (int s = 0; s < kStrips; ++s) {
        store_planes(planes[s], strip[s]);
        *strips[s] = strip[s];
    }
}

}  // namespace

DecodeKernel decode_kernel_avx512(Format format, int strips) {
    if (format == Format::kFloat32) return strips == 1 ? decode<Format::kFloat32, 1> : decode<Format::kFloat32, 2>;
    return strips == 1 ? decode<Format::kBfloat16, 1> : decode<Format::kBfloat16, 2>;
}

DecodeKernel decode_narrow_kernel_avx512(Format format, int strips) {
    if (format == Format::kFloat32)
        return strips == 1 ? decode_narrow<Format::kFloat32, 1> : decode_narrow<Format::kFloat32, 2>;
    return strips == 1 ? decode_narrow<Format::kBfloat16, 1> : decode_narrow<Format::kBfloat16, 2>;
}

}  // namespace trueaxis
#endif
