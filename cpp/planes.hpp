// Planes of bits: entries that are kept bit for bit, cut into planes from the most significant bit down.
//
//   entries (and those of a base) ─▶ words ─▶ planes: zeros | raw bits | symbols, each with a context, through rANS
//
// A word is an entry with its sign moved to the lowest bit, or what an entry differs in from that of a base. Symbol i
// of a plane belongs to lane i mod lanes, so that rows of symbols lie as they are decoded; states, words of 16 bits and
// frequencies of 12 are those of rans.hpp. See docs/format.md.
//
// References: Giesen, arXiv:1402.3392 (interleaved rANS and SIMD renormalization); Lindstrom & Isenburg 2006 (ordered
// integers of floats and their differences).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

constexpr size_t kPlaneLanes = 64;  // at most
constexpr int kPlaneSymbols = 256;
constexpr int kMostPlaneContexts = 64;
constexpr uint8_t kPlaneEscape = 255;

enum class Residue { kOwn, kDifference, kXor };
enum class PlaneKind { kZero, kRaw, kCoded };

struct Plane {
    int bits;  // 1, 2, 4 or 8 of a raw plane, at most 16 of a coded one
    PlaneKind kind;
    const uint8_t* data;  // raw bits, or lane states and words
    size_t bytes;
    int offset;  // of a coded plane: value = offset + symbol; symbol 255 is an escape where there are escapes
    const uint8_t* escapes;  // u16 each
    size_t escape_count;
    bool with_contexts;
    size_t lanes;                  // a power of two, at most 64; vector kernels take 64
    std::vector<uint32_t> lookup;  // [contexts, 4096], see plane_lookup
};

// Where contexts come from: clamp(row code + column code), or clamp(top - (word of the base's entry >> shift)).
struct PlaneContexts {
    const int16_t* row_codes;
    const int16_t* column_codes;
    size_t columns;
    int count;
    int top;
    int shift;
    bool of_base;
};

// frequencies [contexts, 256], each row of sum 4096 with no frequency above 4095, or of zeros. Throws
// std::invalid_argument.
void check_plane_frequencies(const uint16_t* frequencies, size_t contexts);
std::vector<uint32_t> plane_lookup(const uint16_t* frequencies, size_t contexts);

// Lane states, then words. Throws std::invalid_argument where a symbol has no frequency.
std::vector<uint8_t> encode_plane(const uint8_t* symbols, const uint8_t* contexts, size_t count,
                                  const uint16_t* frequencies, size_t context_count, size_t lanes);

// Entries of `width` bytes to out; base is null for Residue::kOwn. Throws std::invalid_argument on damage.
void decode_planes(const std::vector<Plane>& planes, const PlaneContexts& contexts, Residue residue, int width,
                   size_t count, const uint8_t* base, uint8_t* out);

// A stream on its way; `next` may be read 128 bytes beyond `end`.
struct PlaneStream {
    alignas(64) uint32_t states[kPlaneLanes];
    const uint8_t* next;
    const uint8_t* end;
};

// `rows` rows of 64 symbols; `next` passes `end` where the stream is truncated.
using PlaneKernel = void (*)(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows,
                             uint8_t* symbols);
void decode_plane_rows_avx2(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows,
                            uint8_t* symbols);
void decode_plane_rows_avx512(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows,
                              uint8_t* symbols);

}  // namespace trueaxis
