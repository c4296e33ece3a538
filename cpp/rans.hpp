// Interleaved rANS: chains of strips of columns to bytes and back.
//
//   segments (columns of matrices) + tables ─▶ stream: lane states, 16-bit words   and   escapes: a bit stream
//
// A lane is one column, a strip is up to `lanes` adjacent columns over all their rows; lane states run on from strip to
// strip. Words lie in the order in which rows, and within a row lanes, consume them. See docs/format.md.
//
// References: Duda, arXiv:1311.2540 (rANS); Giesen, arXiv:1402.3392 (interleaving).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "table.hpp"
#include "trellis.hpp"

namespace trueaxis {

constexpr uint32_t kStateFloor = 1U << 16;
constexpr int kMaxLanes = 32;

struct Coded {
    std::vector<uint8_t> stream;
    std::vector<uint8_t> escapes;
};

// indices[s] are the [columns, rows] of segments[s]. Throws std::invalid_argument if a table is missing.
Coded encode_stream(const TableSet& tables, const std::vector<Segment>& segments,
                    const std::vector<const int32_t*>& indices, int lanes);

// Inverse; every read is bounded. Throws std::invalid_argument on bytes that encode_stream cannot have written.
void decode_stream(const TableSet& tables, const uint8_t* stream, size_t stream_bytes, const uint8_t* escapes,
                   size_t escape_bytes, const std::vector<Segment>& segments, const std::vector<int32_t*>& indices,
                   int lanes);

// Adds occurrences of |k| = 0..max_magnitude and above to counts [2, classes, max_magnitude + 2].
void count_symbols(const Segment& segment, const int32_t* indices, int classes, int max_magnitude, uint64_t* counts);

// The table of every index, quantizer * classes + class, to numbers [columns, rows]; classes at most 64.
void table_numbers(const Segment& segment, const int32_t* indices, int classes, uint8_t* numbers);

// Ideal code length under the tables, escapes' payload included, in bits.
double stream_bits(const TableSet& tables, const Segment& segment, const int32_t* indices);

}  // namespace trueaxis
