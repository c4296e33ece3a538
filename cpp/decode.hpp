// Fused decoding: streams to values, with trellis, reconstruction, scaling and rounding in one pass.
//
//   stream ─▶ word, table look-up, next state ─▶ k ─▶ (u ± offset) · step ─▶ tiles [strip, rows, lanes] ─▶ [rows,
//   columns]
//
// 32 lanes run side by side, and where two streams are at hand two strips: their dependency chains overlap. Values are
// those of `reconstruct` on the indices of `decode_stream`, bit for bit, on every instruction set.
//
// References: Giesen, arXiv:1402.3392 (interleaved rANS and SIMD renormalization).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rans.hpp"
#include "table.hpp"
#include "trellis.hpp"

namespace trueaxis {

enum class Format { kFloat32, kBfloat16 };

// A run of columns of one matrix inside a stream; its tile t, [rows, lanes] values, is t-th at `tiles`.
struct ValueSegment {
    Segment segment;
    Steps steps;  // of the segment's columns
    void* tiles;
};

struct ValueStream {
    const uint8_t* words;
    size_t word_bytes;
    const uint8_t* escapes;
    size_t escape_bytes;
    std::vector<ValueSegment> segments;
    int lanes;
};

// Throws std::invalid_argument on bytes that encode_stream cannot have written.
void decode_values(const TableSet& tables, const std::vector<ValueStream>& streams, Format format, int threads);

// out [rows, columns]: column j is that at `places`[j] in the order of the tiles.
void untile(const void* tiles, size_t rows, size_t columns, int lanes, const uint32_t* places, Format format, void* out,
            int threads);

}  // namespace trueaxis
