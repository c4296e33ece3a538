// Kernel of coded planes, AVX-512: 64 lanes in four registers. See planes.hpp.
#include "planes.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include "rans.hpp"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,bmi,popcnt")))

namespace trueaxis {

TARGET void decode_plane_rows_avx512(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows,
                                     uint8_t* symbols) {
    constexpr int part = 16;
    constexpr int parts = kPlaneLanes / part;
    const __m512i low_bits = _mm512_set1_epi32(0xFFF);
    const __m512i floor = _mm512_set1_epi32(kStateFloor);
    __m512i states[parts];
    const uint8_t* next = stream.next;
    for (int p = 0; p < parts; ++p) states[p] = _mm512_load_si512(stream.states + part * p);
    for (size_t i = 0; i < rows && next <= stream.end; ++i) {
        __mmask16 renewed[parts];
#pragma GCC unroll 4
        for (int p = 0; p < parts; ++p) {
            const __m128i context = _mm_loadu_si128(reinterpret_cast<const __m128i*>(contexts + part * p));
            const __m512i table = _mm512_slli_epi32(_mm512_cvtepu8_epi32(context), kProbabilityBits);
            const __m512i at = _mm512_or_si512(table, _mm512_and_si512(states[p], low_bits));
            const __m512i entry = _mm512_i32gather_epi32(at, lookup, 4);
            const __m512i product =
                _mm512_mullo_epi32(_mm512_srli_epi32(states[p], kProbabilityBits), _mm512_and_si512(entry, low_bits));
            states[p] = _mm512_add_epi32(product, _mm512_and_si512(_mm512_srli_epi32(entry, 12), low_bits));
            renewed[p] = _mm512_cmplt_epu32_mask(states[p], floor);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + part * p),
                             _mm512_cvtepi32_epi8(_mm512_srli_epi32(entry, 24)));
        }
#pragma GCC unroll 2
        for (int p = 0; p < parts; p += 2) {
            const uint32_t both = renewed[p] | static_cast<uint32_t>(renewed[p + 1]) << part;
            const __m512i words = _mm512_maskz_expand_epi16(both, _mm512_loadu_si512(next));
            next += 2 * static_cast<size_t>(__builtin_popcount(both));
            const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
            const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1));
            states[p] = _mm512_mask_or_epi32(states[p], renewed[p], _mm512_slli_epi32(states[p], 16), first);
            states[p + 1] =
                _mm512_mask_or_epi32(states[p + 1], renewed[p + 1], _mm512_slli_epi32(states[p + 1], 16), second);
        }
        contexts += kPlaneLanes;
        symbols += kPlaneLanes;
    }
    for (int p = 0; p < parts; ++p) _mm512_store_si512(stream.states + part * p, states[p]);
    stream.next = next;
}

}  // namespace trueaxis
#endif
