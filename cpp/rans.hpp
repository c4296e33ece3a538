// Interleaved rANS: indices of whole matrices to bytes and back, every index with the table of its context.
//
//   segments ─▶ strips of up to `lanes` columns ─▶ one 32-bit state per lane ─▶ stream (states, 16-bit words)
//                                                                          └─▶ escapes (bits of |k| > K)
//
// A lane is one column of a strip over all its rows; strips follow one another with the same states, and lanes beyond
// the last column idle. The stream holds `lanes` little-endian 32-bit states in [2^16, 2^32), then little-endian 16-bit
// words in the order in which decoding consumes them: by strip, by row, by lane. One step reads x as
//
//   x ─▶ frequency · (x >> 12) + (x & 4095) − cumulative, then x = x << 16 | word where x < 2^16
//
// The encoder starts every lane at 2^16 and walks backwards, so a decoder that does not end there has read damage.
// An escape is a sign bit (1 for negative) and |k| − K − 1 in Exp-Golomb code of the class's order, most significant
// bit first, in the order by strip, row, lane, padded to a byte with zeros.
//
// References: Duda, Asymmetric numeral systems (arXiv:1311.2540); Giesen, Interleaved entropy coders (arXiv:1402.3392);
// Teuhola 1978 for the Exp-Golomb code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "table.hpp"
#include "trellis.hpp"

namespace trueaxis {

constexpr int kMaxLanes = 32;
constexpr uint32_t kLargestIndex = 1U << 24;

struct CodedStream {
    std::vector<uint8_t> stream;
    std::vector<uint8_t> escapes;
};

// Counts [2, classes, K + 2] of |k| = 0 … K and of larger ones, per quantizer of the trellis state and class.
void count_symbols(std::span<const Segment> segments, int classes, int max_magnitude, uint64_t* counts);

// Ideal length: −log2 of the 12-bit probabilities, and the escapes' own bits.
double stream_bits(const TableSet& tables, std::span<const Segment> segments);

// Throws std::invalid_argument for an index beyond ±2^24 or one that its table gives no probability.
CodedStream encode_stream(const TableSet& tables, std::span<const Segment> segments, int lanes);

// Throws std::invalid_argument where `stream` holds too few bytes for `segments`, whatever its tables. Allocations for
// decoding wait for this.
void check_capacity(size_t stream_bytes, std::span<const Segment> segments);

// Fills outputs[s] [columns, rows] of every segment; throws std::invalid_argument unless both streams are consumed
// exactly and every state ends where the encoder began.
void decode_stream(const TableSet& tables, std::span<const uint8_t> stream, std::span<const uint8_t> escapes,
                   std::span<const Segment> segments, std::span<int32_t* const> outputs, int lanes);

}  // namespace trueaxis
