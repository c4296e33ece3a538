// Interleaved rANS; see rans.hpp.
#include "rans.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

namespace trueaxis {
namespace {

// A strip: some adjacent columns of one segment.
struct Strip {
    size_t segment;
    size_t first;
    size_t width;
};

std::vector<Strip> strips_of(const std::vector<Segment>& segments, int lanes) {
    if (lanes < 1 || lanes > kMaxLanes) throw std::invalid_argument("stream: lanes are not 1 to 32");
    std::vector<Strip> strips;
    for (size_t s = 0; s < segments.size(); ++s)
        for (size_t first = 0; first < segments[s].columns; first += lanes)
            strips.push_back({s, first, std::min<size_t>(lanes, segments[s].columns - first)});
    return strips;
}

// Symbol of an index; the cell's class and quantizer as well, for escapes.
struct Cell {
    uint16_t symbol;
    uint8_t quantizer;
    uint8_t cls;
};

// Calls visit(column, row, index, quantizer, class) down each column in turn.
template <typename Visit>
void walk(const Segment& segment, const int32_t* indices, int classes, Visit visit) {
    const Trellis trellis(segment.trellis);
    for (size_t j = 0; j < segment.columns; ++j) {
        uint32_t state = 0;
        for (size_t i = 0; i < segment.rows; ++i) {
            const int32_t k = indices[j * segment.rows + i];
            visit(j, i, k, Trellis::quantizer(state), segment.class_of(i, j, classes));
            state = trellis.next(state, k);
        }
    }
}

int symbol_of(const TableSet& tables, int32_t k) {
    return std::abs(k) <= tables.max_magnitude() ? k + tables.max_magnitude() : tables.escape_symbol();
}

void check_index(int32_t k) {
    if (k > kLargestIndex || k < -kLargestIndex) throw std::invalid_argument("encode: an index is beyond 2^24");
}

class BitWriter {
   public:
    void put(uint32_t value, int count) {
        for (int b = count; b-- > 0;) {
            if (used_ % 8 == 0) bytes_.push_back(0);
            bytes_.back() |= static_cast<uint8_t>(((value >> b) & 1U) << (7 - used_ % 8));
            ++used_;
        }
    }
    std::vector<uint8_t> take() { return std::move(bytes_); }

   private:
    std::vector<uint8_t> bytes_;
    size_t used_ = 0;
};

class BitReader {
   public:
    BitReader(const uint8_t* data, size_t bytes) : data_(data), bits_(bytes * 8) {}
    uint32_t get(int count) {
        if (static_cast<size_t>(count) > bits_ - used_) throw std::invalid_argument("stream: escapes are truncated");
        uint32_t value = 0;
        for (int b = 0; b < count; ++b, ++used_) value = value << 1 | (data_[used_ / 8] >> (7 - used_ % 8) & 1U);
        return value;
    }
    void finish() {
        if (bits_ - used_ >= 8 || get(static_cast<int>(bits_ - used_)) != 0)
            throw std::invalid_argument("stream: escapes are longer than their symbols");
    }

   private:
    const uint8_t* data_;
    size_t bits_;
    size_t used_ = 0;
};

// Sign and Exp-Golomb code of |k| - K - 1.
void put_escape(BitWriter& bits, int32_t k, int max_magnitude, int order) {
    const auto excess = static_cast<uint32_t>(std::abs(k) - max_magnitude - 1);
    const uint32_t scaled = (excess >> order) + 1;
    const int length = std::bit_width(scaled);
    bits.put(k < 0 ? 1 : 0, 1);
    bits.put(0, length - 1);
    bits.put(scaled, length);
    bits.put(excess & ((1U << order) - 1), order);
}

int32_t get_escape(BitReader& bits, int max_magnitude, int order) {
    const bool negative = bits.get(1) != 0;
    int zeros = 0;
    while (bits.get(1) == 0)
        if (++zeros > kLargestOrder) throw std::invalid_argument("stream: an escape is out of range");
    const uint64_t scaled = (uint64_t{1} << zeros) | bits.get(zeros);
    const uint64_t excess = ((scaled - 1) << order) | bits.get(order);
    const uint64_t magnitude = excess + max_magnitude + 1;
    if (magnitude > static_cast<uint64_t>(kLargestIndex))
        throw std::invalid_argument("stream: an escape is out of range");
    return negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
}

double escape_bits(int32_t k, int max_magnitude, int order) {
    const auto excess = static_cast<uint32_t>(std::abs(k) - max_magnitude - 1);
    return 2.0 * std::bit_width((excess >> order) + 1) + order;
}

std::vector<Cell> cells_of(const TableSet& tables, const Segment& segment, const int32_t* indices) {
    std::vector<Cell> cells(segment.columns * segment.rows);
    walk(segment, indices, tables.classes(), [&](size_t j, size_t i, int32_t k, int q, int cls) {
        check_index(k);
        const int symbol = symbol_of(tables, k);
        if (!tables.present(q, cls) || tables.symbol(q, cls, symbol).frequency == 0)
            throw std::invalid_argument("encode: a table gives no probability to a symbol that occurs");
        cells[j * segment.rows + i] = {static_cast<uint16_t>(symbol), static_cast<uint8_t>(q),
                                       static_cast<uint8_t>(cls)};
    });
    return cells;
}

void append(std::vector<uint8_t>& bytes, uint32_t value, int count) {
    for (int b = 0; b < count; ++b) bytes.push_back(static_cast<uint8_t>(value >> (8 * b)));
}

uint32_t load(const uint8_t* bytes, int count) {
    uint32_t value = 0;
    for (int b = 0; b < count; ++b) value |= uint32_t{bytes[b]} << (8 * b);
    return value;
}

}  // namespace

Coded encode_stream(const TableSet& tables, const std::vector<Segment>& segments,
                    const std::vector<const int32_t*>& indices, int lanes) {
    const std::vector<Strip> strips = strips_of(segments, lanes);
    std::vector<std::vector<Cell>> cells;
    for (size_t s = 0; s < segments.size(); ++s) cells.push_back(cells_of(tables, segments[s], indices[s]));

    BitWriter bits;
    for (const Strip& strip : strips)
        for (size_t i = 0; i < segments[strip.segment].rows; ++i)
            for (size_t l = 0; l < strip.width; ++l) {
                const size_t at = (strip.first + l) * segments[strip.segment].rows + i;
                const Cell cell = cells[strip.segment][at];
                if (cell.symbol == tables.escape_symbol())
                    put_escape(bits, indices[strip.segment][at], tables.max_magnitude(), tables.escape_order(cell.cls));
            }

    // Backwards through everything the decoder will do; words come out last first.
    std::vector<uint32_t> states(lanes, kStateFloor);
    std::vector<uint16_t> words;
    for (size_t s = strips.size(); s-- > 0;) {
        const Strip& strip = strips[s];
        const size_t rows = segments[strip.segment].rows;
        for (size_t i = rows; i-- > 0;)
            for (size_t l = strip.width; l-- > 0;) {
                const Cell cell = cells[strip.segment][(strip.first + l) * rows + i];
                const Symbol symbol = tables.symbol(cell.quantizer, cell.cls, cell.symbol);
                uint32_t& x = states[l];
                if (x >= uint32_t{symbol.frequency} << (32 - kProbabilityBits)) {
                    words.push_back(static_cast<uint16_t>(x));
                    x >>= 16;
                }
                x = ((x / symbol.frequency) << kProbabilityBits) + x % symbol.frequency + symbol.start;
            }
    }
    Coded coded{{}, bits.take()};
    coded.stream.reserve(4 * states.size() + 2 * words.size());
    for (const uint32_t state : states) append(coded.stream, state, 4);
    for (size_t w = words.size(); w-- > 0;) append(coded.stream, words[w], 2);
    return coded;
}

void decode_stream(const TableSet& tables, const uint8_t* stream, size_t stream_bytes, const uint8_t* escapes,
                   size_t escape_bytes, const std::vector<Segment>& segments, const std::vector<int32_t*>& indices,
                   int lanes) {
    const std::vector<Strip> strips = strips_of(segments, lanes);
    const size_t head = 4 * static_cast<size_t>(lanes);
    if (stream_bytes < head || (stream_bytes - head) % 2 != 0) throw std::invalid_argument("stream: truncated");
    uint32_t states[kMaxLanes];
    for (int l = 0; l < lanes; ++l) {
        states[l] = load(stream + 4 * static_cast<size_t>(l), 4);
        if (states[l] < kStateFloor) throw std::invalid_argument("stream: a lane starts below its floor");
    }
    const uint8_t* next = stream + head;
    const uint8_t* const end = stream + stream_bytes;
    BitReader bits(escapes, escape_bytes);
    for (const Strip& strip : strips) {
        const Segment& segment = segments[strip.segment];
        const Trellis trellis(segment.trellis);
        uint32_t trellis_states[kMaxLanes] = {};
        int32_t* out = indices[strip.segment] + strip.first * segment.rows;
        for (size_t i = 0; i < segment.rows; ++i)
            for (size_t l = 0; l < strip.width; ++l) {
                const int q = Trellis::quantizer(trellis_states[l]);
                const int cls = segment.class_of(i, strip.first + l, tables.classes());
                if (!tables.present(q, cls)) throw std::invalid_argument("stream: a class without a table occurs");
                const uint32_t slot = states[l] & (kTotal - 1);
                const int found = tables.find(q, cls, slot);
                const Symbol symbol = tables.symbol(q, cls, found);
                uint32_t x = symbol.frequency * (states[l] >> kProbabilityBits) + slot - symbol.start;
                if (x < kStateFloor) {
                    if (next == end) throw std::invalid_argument("stream: truncated");
                    x = x << 16 | load(next, 2);
                    next += 2;
                }
                states[l] = x;
                const int32_t k = found == tables.escape_symbol()
                                      ? get_escape(bits, tables.max_magnitude(), tables.escape_order(cls))
                                      : found - tables.max_magnitude();
                out[l * segment.rows + i] = k;
                trellis_states[l] = trellis.next(trellis_states[l], k);
            }
    }
    for (int l = 0; l < lanes; ++l)
        if (states[l] != kStateFloor) throw std::invalid_argument("stream: a lane does not end where it began");
    if (next != end) throw std::invalid_argument("stream: words are left over");
    bits.finish();
}

void count_symbols(const Segment& segment, const int32_t* indices, int classes, int max_magnitude, uint64_t* counts) {
    walk(segment, indices, classes, [&](size_t, size_t, int32_t k, int q, int cls) {
        check_index(k);
        const int magnitude = std::min(std::abs(k), max_magnitude + 1);
        ++counts[(static_cast<size_t>(q) * classes + cls) * (max_magnitude + 2) + magnitude];
    });
}

double stream_bits(const TableSet& tables, const Segment& segment, const int32_t* indices) {
    double total = 0.0;
    walk(segment, indices, tables.classes(), [&](size_t, size_t, int32_t k, int q, int cls) {
        check_index(k);
        const int symbol = symbol_of(tables, k);
        const int frequency = tables.symbol(q, cls, symbol).frequency;
        if (frequency == 0) throw std::invalid_argument("encode: a table gives no probability to a symbol that occurs");
        total += kProbabilityBits - std::log2(static_cast<double>(frequency));
        if (symbol == tables.escape_symbol()) total += escape_bits(k, tables.max_magnitude(), tables.escape_order(cls));
    });
    return total;
}

}  // namespace trueaxis
