// Decoding kernel, AVX2: 32 lanes in four registers. See decode.hpp.
#include "decode_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include "word_places.hpp"

#define TARGET __attribute__((target("avx2,bmi,popcnt")))

namespace trueaxis {
namespace {

constexpr int kPart = kPartLanes;
constexpr int kParts = kMaxLanes / kPart;

TARGET inline __m256i load(const void* data) { return _mm256_loadu_si256(static_cast<const __m256i*>(data)); }
TARGET inline void store(void* data, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(data), value); }
TARGET inline uint32_t signs(__m256i lanes) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

// Stores the lanes of `lanes`; the others stay.
TARGET inline void store_lanes(uint32_t* states, __m256i after, uint32_t lanes) {
    alignas(32) uint32_t all[kPart];
    store(all, after);
    for (int l = 0; l < kPart; ++l)
        if (lanes >> l & 1U) states[l] = all[l];
}

TARGET inline __m256i to_bfloat16(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
}

// Escaped lanes one by one: their k and value.
TARGET __attribute__((noinline)) void settle_escapes(const Shared& shared, Strip& strip, int32_t row_code,
                                                     uint32_t escaped, __m256i (&k)[kParts], __m256 (&values)[kParts]) {
    alignas(32) int32_t index[kMaxLanes];
    alignas(32) float value[kMaxLanes];
    for (int p = 0; p < kParts; ++p) {
        store(index + kPart * p, k[p]);
        _mm256_store_ps(value + kPart * p, values[p]);
    }
    for (; escaped != 0; escaped &= escaped - 1) {
        const int l = __builtin_ctz(escaped);
        const Escape escape = read_escape(shared, strip, static_cast<int>(strip.trellis[l] & 1U), row_code, l);
        index[l] = escape.k;
        value[l] = escape.value;
    }
    for (int p = 0; p < kParts; ++p) {
        k[p] = load(index + kPart * p);
        values[p] = _mm256_load_ps(value + kPart * p);
    }
}

template <Format kFormat>
TARGET inline void store_row(const Strip& strip, const __m256 (&values)[kParts]) {
    alignas(32) uint8_t rounded[4 * kMaxLanes];
    const bool full = strip.width == kMaxLanes;
    uint8_t* out = full ? strip.out : rounded;
    if constexpr (kFormat == Format::kFloat32) {
        for (int p = 0; p < kParts; ++p) store(out + 4 * kPart * p, _mm256_castps_si256(values[p]));
    } else {
        for (int p = 0; p < kParts; p += 2) {
            const __m256i packed = _mm256_packus_epi32(to_bfloat16(values[p]), to_bfloat16(values[p + 1]));
            store(out + 2 * kPart * p, _mm256_permute4x64_epi64(packed, 0xD8));
        }
    }
    if (!full)
        std::memcpy(strip.out, rounded, (kFormat == Format::kFloat32 ? 4 : 2) * static_cast<size_t>(strip.width));
}

template <Format kFormat>
TARGET void decode(const Shared& shared, Strip* const* strips, size_t rows) {
    Strip& strip = *strips[0];
    const int classes = shared.tables->classes();
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i low_bits = _mm256_set1_epi32(0xFFF);
    const __m128i shift = _mm_cvtsi32_si128(strip.shift);
    const __m256i on_parity = _mm256_set1_epi32(static_cast<int>(strip.on_parity));
    const __m256i on_state = _mm256_set1_epi32(static_cast<int>(strip.on_state));
    const uint32_t active = strip.width == kMaxLanes ? ~0U : (1U << strip.width) - 1;
    const int* lookup = reinterpret_cast<const int*>(shared.lookup);
    const float* zero_values = strip.values - kEscapeMark;  // of k = 0
    for (size_t i = 0; i < rows; ++i) {
        const int32_t row_code = *strip.row_codes;
        __m256i k[kParts];
        __m256 values[kParts];
        uint32_t escaped = 0;
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const __m256i code = _mm256_add_epi32(load(strip.codes + kPart * p), _mm256_set1_epi32(row_code));
            const __m256i cls =
                _mm256_min_epi32(_mm256_max_epi32(_mm256_sra_epi32(code, shift), _mm256_setzero_si256()),
                                 _mm256_set1_epi32(classes - 1));
            const __m256i q =
                _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(load(strip.trellis + kPart * p), one));
            const __m256i table = _mm256_add_epi32(cls, _mm256_and_si256(q, _mm256_set1_epi32(classes)));
            const __m256i state = load(strip.states + kPart * p);
            const __m256i at =
                _mm256_or_si256(_mm256_slli_epi32(table, kProbabilityBits), _mm256_and_si256(state, low_bits));
            const __m256i entry = _mm256_i32gather_epi32(lookup, at, 4);
            const __m256i product =
                _mm256_mullo_epi32(_mm256_srli_epi32(state, kProbabilityBits), _mm256_and_si256(entry, low_bits));
            const __m256i next = _mm256_add_epi32(product, _mm256_and_si256(_mm256_srli_epi32(entry, 12), low_bits));
            const uint32_t lanes = active >> (kPart * p) & 0xFF;
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256());
            const uint32_t renewed = signs(low) & lanes;
            const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(strip.next)));
            const __m256i places =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordPlaces[renewed].data())));
            const __m256i renewal =
                _mm256_or_si256(_mm256_slli_epi32(next, 16), _mm256_permutevar8x32_epi32(words, places));
            strip.next += 2 * static_cast<size_t>(__builtin_popcount(renewed));
            const __m256i after = _mm256_blendv_epi8(next, renewal, low);
            if (lanes == 0xFF)
                store(strip.states + kPart * p, after);
            else
                store_lanes(strip.states + kPart * p, after, lanes);
            k[p] = _mm256_srai_epi32(entry, 24);
            const __m256i value_at = _mm256_add_epi32(_mm256_slli_epi32(table, kValueBits), k[p]);
            values[p] = _mm256_i32gather_ps(zero_values, value_at, 4);
            escaped |= (signs(_mm256_cmpeq_epi32(k[p], _mm256_set1_epi32(kEscapeMark))) & lanes) << (kPart * p);
        }
        if (__builtin_expect(strip.next > strip.end, 0)) throw_truncated();
        if (__builtin_expect(escaped != 0, 0)) settle_escapes(shared, strip, row_code, escaped, k, values);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const __m256i trellis = load(strip.trellis + kPart * p);
            const __m256i q = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(trellis, one));
            const __m256i odd = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(k[p], one));
            const __m256i moved = _mm256_xor_si256(_mm256_and_si256(odd, on_parity), _mm256_and_si256(q, on_state));
            store(strip.trellis + kPart * p, _mm256_xor_si256(_mm256_srli_epi32(trellis, 1), moved));
            const __m256 row_step = strip.group_count == 1
                                        ? _mm256_set1_ps(*strip.row_steps)
                                        : _mm256_i32gather_ps(strip.row_steps, load(strip.groups + kPart * p), 4);
            const __m256 step = _mm256_mul_ps(_mm256_loadu_ps(strip.steps + kPart * p), row_step);
            values[p] = _mm256_mul_ps(values[p], step);
        }
        store_row<kFormat>(strip, values);
        ++strip.row_codes;
        strip.row_steps += strip.group_count;
        strip.out += strip.row_bytes;
    }
}

}  // namespace

DecodeKernel decode_kernel_avx2(Format format) {
    return format == Format::kFloat32 ? decode<Format::kFloat32> : decode<Format::kBfloat16>;
}

}  // namespace trueaxis
#endif
