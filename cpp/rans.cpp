// Interleaved rANS; see rans.hpp.
#include "rans.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

#include "escapes.hpp"

namespace trueaxis {
namespace {

constexpr size_t kRowBlock = 64;  // rows of a column walked at a time, so that a strip's columns stay in cache

// Some adjacent columns of one segment.
struct Columns {
    size_t segment;
    size_t first;
    size_t width;
};

std::vector<Columns> strips_of(const std::vector<Segment>& segments, int lanes) {
    if (lanes < 1 || lanes > kMaxLanes) throw std::invalid_argument("stream: lanes are not 1 to 32");
    std::vector<Columns> strips;
    for (size_t s = 0; s < segments.size(); ++s)
        for (size_t first = 0; first < segments[s].columns; first += lanes)
            strips.push_back({s, first, std::min<size_t>(lanes, segments[s].columns - first)});
    return strips;
}

void check_indices(const int32_t* indices, size_t count) {
    bool inside = true;
    for (size_t i = 0; i < count; ++i) inside &= indices[i] <= kLargestIndex && indices[i] >= -kLargestIndex;
    if (!inside) throw std::invalid_argument("encode: an index is beyond 2^24");
}

// Calls visit(row, index, quantizer, class) on rows [first, last) of a column; `state` goes along.
template <typename Visit>
void walk(const Segment& segment, const int32_t* column, size_t j, size_t first, size_t last, int classes,
          uint32_t& state, Visit visit) {
    const Trellis trellis(segment.trellis);
    for (size_t i = first; i < last; ++i) {
        visit(i, column[i], Trellis::quantizer(state), segment.class_of(i, j, classes));
        state = trellis.next(state, column[i]);
    }
}

// Symbols of a strip as positions in tables.symbols(), [rows, width] in coding order; its escapes are written.
void symbols_of(const TableSet& tables, const Segment& segment, const Columns& strip, const int32_t* indices,
                std::vector<uint16_t>& symbols, EscapeWriter& escapes) {
    const int largest = tables.max_magnitude();
    uint32_t states[kMaxLanes] = {};
    symbols.resize(segment.rows * strip.width);
    for (size_t first = 0; first < segment.rows; first += kRowBlock) {
        const size_t last = std::min(segment.rows, first + kRowBlock);
        bool escaped = false;
        for (size_t l = 0; l < strip.width; ++l) {
            const size_t j = strip.first + l;
            walk(segment, indices + j * segment.rows, j, first, last, tables.classes(), states[l],
                 [&](size_t i, int32_t k, int q, int cls) {
                     const bool beyond = std::abs(k) > largest;
                     escaped |= beyond;
                     const int symbol = beyond ? tables.escape_symbol() : k + largest;
                     symbols[i * strip.width + l] = static_cast<uint16_t>(tables.symbols_at(q, cls) + symbol);
                 });
        }
        if (!escaped) continue;
        for (size_t i = first; i < last; ++i)
            for (size_t j = strip.first; j < strip.first + strip.width; ++j) {
                const int32_t k = indices[j * segment.rows + i];
                if (std::abs(k) > largest)
                    escapes.put(k, largest, tables.escape_order(segment.class_of(i, j, tables.classes())));
            }
    }
}

// Backwards through a strip; words go down from `end`, whose new value is returned.
uint16_t* code_backwards(const TableSet& tables, const std::vector<uint16_t>& symbols, size_t width, uint32_t* states,
                         uint16_t* end) {
    const Symbol* all = tables.symbols();
    bool missing = false;
    for (size_t i = symbols.size() / width; i-- > 0;)
        for (size_t l = width; l-- > 0;) {
            const Symbol& symbol = all[symbols[i * width + l]];
            uint32_t x = states[l];
            const bool full = x >= uint64_t{symbol.frequency} << (32 - kProbabilityBits);
            missing |= symbol.frequency == 0;
            end[-1] = static_cast<uint16_t>(x);
            end -= full ? 1 : 0;
            x >>= full ? 16 : 0;
            const auto quotient = static_cast<uint32_t>(x * symbol.reciprocal >> kReciprocalBits);
            states[l] = x + symbol.start + quotient * (kTotal - symbol.frequency);
        }
    if (missing) throw std::invalid_argument("encode: a table gives no probability to a symbol that occurs");
    return end;
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
    const std::vector<Columns> strips = strips_of(segments, lanes);
    std::vector<std::vector<uint16_t>> symbols(strips.size());
    EscapeWriter escapes;
    size_t most_words = 1;
    for (size_t s = 0; s < segments.size(); ++s) {
        check_indices(indices[s], segments[s].columns * segments[s].rows);
        most_words += segments[s].columns * segments[s].rows;
    }
    for (size_t s = 0; s < strips.size(); ++s)
        symbols_of(tables, segments[strips[s].segment], strips[s], indices[strips[s].segment], symbols[s], escapes);

    std::vector<uint32_t> states(lanes, kStateFloor);
    std::vector<uint16_t> words(most_words);
    uint16_t* const end = words.data() + words.size();
    uint16_t* first = end;
    for (size_t s = strips.size(); s-- > 0;)
        first = code_backwards(tables, symbols[s], strips[s].width, states.data(), first);
    Coded coded{{}, escapes.take()};
    coded.stream.reserve(4 * states.size() + 2 * static_cast<size_t>(end - first));
    for (const uint32_t state : states) append(coded.stream, state, 4);
    for (; first != end; ++first) append(coded.stream, *first, 2);
    return coded;
}

void decode_stream(const TableSet& tables, const uint8_t* stream, size_t stream_bytes, const uint8_t* escapes,
                   size_t escape_bytes, const std::vector<Segment>& segments, const std::vector<int32_t*>& indices,
                   int lanes) {
    const std::vector<Columns> strips = strips_of(segments, lanes);
    const size_t head = 4 * static_cast<size_t>(lanes);
    if (stream_bytes < head || (stream_bytes - head) % 2 != 0) throw std::invalid_argument("stream: truncated");
    uint32_t states[kMaxLanes];
    for (int l = 0; l < lanes; ++l) {
        states[l] = load(stream + 4 * static_cast<size_t>(l), 4);
        if (states[l] < kStateFloor) throw std::invalid_argument("stream: a lane starts below its floor");
    }
    const uint8_t* next = stream + head;
    const uint8_t* const end = stream + stream_bytes;
    EscapeReader bits(escapes, escape_bytes);
    for (const Columns& strip : strips) {
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
                const Symbol& symbol = tables.symbol(q, cls, found);
                uint32_t x = symbol.frequency * (states[l] >> kProbabilityBits) + slot - symbol.start;
                if (x < kStateFloor) {
                    if (next == end) throw std::invalid_argument("stream: truncated");
                    x = x << 16 | load(next, 2);
                    next += 2;
                }
                states[l] = x;
                const int32_t k = found == tables.escape_symbol()
                                      ? bits.get(tables.max_magnitude(), tables.escape_order(cls))
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
    const size_t stride = static_cast<size_t>(max_magnitude) + 2;
    // Two sets, for odd and even rows: neighbours then rarely wait for each other's counter.
    std::vector<uint32_t> found(2 * kQuantizers * classes * stride);
    check_indices(indices, segment.columns * segment.rows);
    for (size_t j = 0; j < segment.columns; ++j) {
        uint32_t state = 0;
        walk(segment, indices + j * segment.rows, j, 0, segment.rows, classes, state,
             [&](size_t i, int32_t k, int q, int cls) {
                 const size_t table = (i % 2 * kQuantizers + q) * classes + cls;
                 ++found[table * stride + std::min(std::abs(k), max_magnitude + 1)];
             });
    }
    const size_t half = found.size() / 2;
    for (size_t cell = 0; cell < half; ++cell) counts[cell] += uint64_t{found[cell]} + found[half + cell];
}

void table_numbers(const Segment& segment, const int32_t* indices, int classes, uint8_t* numbers) {
    for (size_t j = 0; j < segment.columns; ++j) {
        uint32_t state = 0;
        walk(segment, indices + j * segment.rows, j, 0, segment.rows, classes, state,
             [&](size_t i, int32_t, int q, int cls) {
                 numbers[j * segment.rows + i] = static_cast<uint8_t>(q * classes + cls);
             });
    }
}

double stream_bits(const TableSet& tables, const Segment& segment, const int32_t* indices) {
    const int largest = tables.max_magnitude();
    const size_t stride = static_cast<size_t>(largest) + 2;
    std::vector<uint64_t> counts(static_cast<size_t>(kQuantizers) * tables.classes() * stride);
    count_symbols(segment, indices, tables.classes(), largest, counts.data());
    double total = 0.0;
    for (int q = 0; q < kQuantizers; ++q)
        for (int cls = 0; cls < tables.classes(); ++cls)
            for (int m = 0; m <= largest + 1; ++m) {
                const uint64_t count = counts[(static_cast<size_t>(q) * tables.classes() + cls) * stride + m];
                const int frequency = tables.symbol(q, cls, largest + m).frequency;
                if (count == 0) continue;
                if (frequency == 0)
                    throw std::invalid_argument("encode: a table gives no probability to a symbol that occurs");
                total += static_cast<double>(count) * (kProbabilityBits - std::log2(static_cast<double>(frequency)));
            }
    for (size_t j = 0; j < segment.columns; ++j)
        for (size_t i = 0; i < segment.rows; ++i) {
            const int32_t k = indices[j * segment.rows + i];
            if (std::abs(k) > largest)
                total += escape_bits(k, largest, tables.escape_order(segment.class_of(i, j, tables.classes())));
        }
    return total;
}

}  // namespace trueaxis
