// Kernel of coded planes, AVX2: 64 lanes in eight registers. See planes.hpp.
#include "planes.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include "rans.hpp"
#include "word_places.hpp"

#define TARGET __attribute__((target("avx2,bmi,popcnt")))

namespace trueaxis {
namespace {

constexpr int kPart = kPartLanes;

TARGET inline __m128i low_bytes(__m256i lanes) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    return _mm_packus_epi16(words, words);
}

}  // namespace

TARGET void decode_plane_rows_avx2(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows,
                                   uint8_t* symbols) {
    constexpr int parts = kPlaneLanes / kPart;
    const __m256i low_bits = _mm256_set1_epi32(0xFFF);
    const int* entries = reinterpret_cast<const int*>(lookup);
    const uint8_t* next = stream.next;
    for (size_t i = 0; i < rows && next <= stream.end; ++i) {
#pragma GCC unroll 8
        for (int p = 0; p < parts; ++p) {
            auto* place = reinterpret_cast<__m256i*>(stream.states + kPart * p);
            const __m128i context = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(contexts + kPart * p));
            const __m256i table = _mm256_slli_epi32(_mm256_cvtepu8_epi32(context), kProbabilityBits);
            const __m256i state = _mm256_load_si256(place);
            const __m256i at = _mm256_or_si256(table, _mm256_and_si256(state, low_bits));
            const __m256i entry = _mm256_i32gather_epi32(entries, at, 4);
            const __m256i product =
                _mm256_mullo_epi32(_mm256_srli_epi32(state, kProbabilityBits), _mm256_and_si256(entry, low_bits));
            const __m256i after = _mm256_add_epi32(product, _mm256_and_si256(_mm256_srli_epi32(entry, 12), low_bits));
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(after, 16), _mm256_setzero_si256());
            const auto renewed = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
            const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)));
            const __m256i places =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordPlaces[renewed].data())));
            const __m256i renewal =
                _mm256_or_si256(_mm256_slli_epi32(after, 16), _mm256_permutevar8x32_epi32(words, places));
            next += 2 * static_cast<size_t>(__builtin_popcount(renewed));
            _mm256_store_si256(place, _mm256_blendv_epi8(after, renewal, low));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(symbols + kPart * p), low_bytes(_mm256_srli_epi32(entry, 24)));
        }
        contexts += kPlaneLanes;
        symbols += kPlaneLanes;
    }
    stream.next = next;
}

}  // namespace trueaxis
#endif
