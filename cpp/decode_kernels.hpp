// The decoding kernel that has a variant per instruction set; see decode.hpp.
#pragma once

#include <cstring>

#include "decode.hpp"
#include "escapes.hpp"

namespace trueaxis {

// Both tables of one class where no |k| above 15 has a probability, as a search in registers wants them: entry
// 32 q + k + 15, the escape at 32 q + 31. An absent table reads as nothing but escapes.
struct alignas(64) Narrow {
    uint16_t starts[64];
    uint16_t frequencies[64];
    float values[64];  // reconstruction before scaling
};
constexpr int kNarrowMagnitude = 15;
constexpr int kNarrowEscape = 31;

// One strip on its way, and the stream it is part of.
struct Strip {
    alignas(64) uint32_t states[kMaxLanes];   // of the coder
    alignas(64) uint32_t trellis[kMaxLanes];  // of the trellis
    alignas(64) int32_t codes[kMaxLanes];     // scale codes of the columns
    alignas(64) float steps[kMaxLanes];       // column steps
    alignas(64) int32_t groups[kMaxLanes];
    int width;            // active lanes, from lane 0
    const uint8_t* next;  // words to come; 64 bytes beyond `end` are readable
    const uint8_t* end;
    const int32_t* row_codes;  // of the row to come
    const float* row_steps;    // [groups] of the row to come
    size_t group_count;
    uint8_t* out;      // tile row to come
    size_t row_bytes;  // of a tile row
    int shift;
    uint32_t on_parity;
    uint32_t on_state;
    EscapeReader* escapes;
    const int8_t* offsets;  // [2, classes, 2]
    const float* values;    // [2, classes, 128] reconstruction of k = −64 .. 63 before scaling
    const Narrow* narrow;   // [classes] where all lanes share a class and all classes in reach are narrow
};

// What all strips share.
struct Shared {
    const TableSet* tables;
    const uint32_t*
        lookup;  // [2, classes, 4096]: frequency, slot - start << 12, k << 24; k = -64 for an escape or no table
};

constexpr int kEscapeMark = -64;
constexpr int kValueBits = 7;  // of the values of a table

// `rows` rows of one or two strips.
using DecodeKernel = void (*)(const Shared& shared, Strip* const* strips, size_t rows);

struct Escape {
    int32_t k;
    float value;  // before scaling
};

// The rare lanes, one at a time; throws where the class has no table.
Escape read_escape(const Shared& shared, Strip& strip, int quantizer, int32_t row_code, int lane);
[[noreturn]] void throw_truncated();

// Class of a lane in a row; codes are within ±2^30.
inline int class_at(const Strip& strip, int32_t row_code, int lane, int classes) {
    const int cls = (row_code + strip.codes[lane]) >> strip.shift;
    return cls < 0 ? 0 : cls >= classes ? classes - 1 : cls;
}

// Float32 bits rounded to the nearest bfloat16, ties to even.
inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// One strip, and for AVX-512 also two, and strips with `narrow` set.
DecodeKernel decode_kernel_avx2(Format format);
DecodeKernel decode_kernel_avx512(Format format, int strips);
DecodeKernel decode_narrow_kernel_avx512(Format format, int strips);

}  // namespace trueaxis
