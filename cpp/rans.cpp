// Interleaved rANS over strips of columns; see rans.hpp.
#include "rans.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

namespace trueaxis {
namespace {

constexpr uint32_t kLowerBound = 1U << 16;
constexpr int kLargestPrefix = 24;  // (2^24 >> order) + 1 has at most 25 bits
// Decoding a symbol of frequency <= 4095 lowers a state by at least 1/4352; a word raises it by under 17 bits. So no
// byte of a stream can stand for more than about 25,700 indices.
constexpr size_t kIndicesPerByte = size_t{1} << 15;

struct Strip {
    const Segment* segment;
    size_t segment_number;
    size_t first;  // column
    size_t width;  // columns
};

std::vector<Strip> strips_of(std::span<const Segment> segments, int lanes) {
    if (lanes < 1 || lanes > kMaxLanes)
        throw std::invalid_argument("a stream has " + std::to_string(lanes) + " lanes; expected 1 to 32");
    std::vector<Strip> strips;
    for (size_t number = 0; number < segments.size(); ++number) {
        const size_t columns = segments[number].columns;
        for (size_t first = 0; first < columns; first += static_cast<size_t>(lanes))
            strips.push_back({&segments[number], number, first, std::min<size_t>(lanes, columns - first)});
    }
    return strips;
}

void check_index(uint32_t magnitude) {
    if (magnitude > kLargestIndex)
        throw std::invalid_argument("an index is beyond ±2^24: its step is far too small for its weight");
}

[[noreturn]] void throw_absent(uint32_t quantizer, int cls) {
    throw std::invalid_argument("there is no table for quantizer " + std::to_string(quantizer) + ", class " +
                                std::to_string(cls));
}

[[noreturn]] void throw_improbable(uint32_t quantizer, int cls, int32_t k) {
    throw std::invalid_argument("the table of quantizer " + std::to_string(quantizer) + ", class " +
                                std::to_string(cls) + " gives no probability to " + std::to_string(k));
}

// Calls visit(k, quantizer, class) down every column.
template <typename Visit>
void visit_columns(const Segment& segment, size_t first, size_t width, int classes, Visit&& visit) {
    for (size_t column = first; column < first + width; ++column) {
        const int32_t* indices = segment.indices + column * segment.rows;
        uint32_t state = 0;
        for (size_t row = 0; row < segment.rows; ++row) {
            const int32_t k = indices[row];
            visit(k, state & 1U,
                  class_of(segment.row_codes[row], segment.column_codes[column], segment.shift, classes));
            state = segment.trellis.next(state, k);
        }
    }
}

int escape_length(uint32_t excess, int order) {
    const int bits = std::bit_width((excess >> order) + 1U);
    return 1 + 2 * bits - 1 + order;
}

class BitWriter {
  public:
    void write(uint64_t value, int count) {
        while (count-- > 0) {
            if (used_ % 8 == 0) bytes_.push_back(0);
            bytes_.back() = static_cast<uint8_t>(bytes_.back() | ((value >> count) & 1U) << (7 - used_ % 8));
            ++used_;
        }
    }

    void write_escape(int32_t k, uint32_t excess, int order) {
        const uint32_t prefix = (excess >> order) + 1U;
        write(k < 0 ? 1U : 0U, 1);
        write(prefix, 2 * std::bit_width(prefix) - 1);
        write(excess & ((1U << order) - 1U), order);
    }

    std::vector<uint8_t> take() { return std::move(bytes_); }

  private:
    std::vector<uint8_t> bytes_;
    size_t used_ = 0;  // bits
};

class BitReader {
  public:
    explicit BitReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

    uint64_t read(int count) {
        uint64_t value = 0;
        while (count-- > 0) {
            if (used_ / 8 >= bytes_.size()) throw std::invalid_argument("the escapes are truncated");
            value = value << 1 | (bytes_[used_ / 8] >> (7 - used_ % 8) & 1U);
            ++used_;
        }
        return value;
    }

    int32_t read_escape(int order, int max_magnitude) {
        const bool negative = read(1) != 0;
        int prefix = 0;
        while (read(1) == 0)
            if (++prefix > kLargestPrefix) throw std::invalid_argument("an escape is beyond ±2^24");
        const uint64_t high = (uint64_t{1} << prefix | read(prefix)) - 1;
        const uint64_t magnitude = (high << order | read(order)) + static_cast<uint64_t>(max_magnitude) + 1;
        if (magnitude > kLargestIndex) throw std::invalid_argument("an escape is beyond ±2^24");
        return negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
    }

    void check_end() {
        const size_t left = bytes_.size() * 8 - used_;
        if (left >= 8 || read(static_cast<int>(left)) != 0)
            throw std::invalid_argument("the escapes hold more than the stream asked for");
    }

  private:
    std::span<const uint8_t> bytes_;
    size_t used_ = 0;  // bits
};

void write_escapes(const TableSet& tables, const Strip& strip, BitWriter& escapes) {
    const Segment& segment = *strip.segment;
    const auto largest = static_cast<uint32_t>(tables.max_magnitude());
    const int32_t* indices = segment.indices + strip.first * segment.rows;
    const auto is_escape = [largest](int32_t k) { return magnitude_of(k) > largest; };
    if (std::none_of(indices, indices + strip.width * segment.rows, is_escape)) return;
    for (size_t row = 0; row < segment.rows; ++row)
        for (size_t lane = 0; lane < strip.width; ++lane) {
            const int32_t k = indices[lane * segment.rows + row];
            const uint32_t magnitude = magnitude_of(k);
            if (magnitude <= largest) continue;
            check_index(magnitude);
            const int cls = class_of(segment.row_codes[row], segment.column_codes[strip.first + lane], segment.shift,
                                     tables.classes());
            escapes.write_escape(k, magnitude - largest - 1, tables.escape_order(cls));
        }
}

// One symbol to encode.
struct Coded {
    uint16_t frequency;
    uint16_t cumulative;
};

Coded lookup(const TableSet& tables, int32_t k, uint32_t quantizer, int cls) {
    const size_t table = tables.table(quantizer, cls);
    if (!tables.present(table)) throw_absent(quantizer, cls);
    const bool inner = magnitude_of(k) <= static_cast<uint32_t>(tables.max_magnitude());
    const int symbol = inner ? k + tables.max_magnitude() : tables.escape_symbol();
    const uint32_t frequency = tables.frequency(table, symbol);
    if (frequency == 0) throw_improbable(quantizer, cls, k);
    return {static_cast<uint16_t>(frequency), static_cast<uint16_t>(tables.cumulative(table, symbol))};
}

void encode_strip(const TableSet& tables, const Strip& strip, std::vector<Coded>& symbols,
                  std::array<uint32_t, kMaxLanes>& states, std::vector<uint16_t>& words) {
    const size_t rows = strip.segment->rows;
    symbols.clear();
    symbols.reserve(rows * strip.width);
    visit_columns(
        *strip.segment, strip.first, strip.width, tables.classes(),
        [&](int32_t k, uint32_t quantizer, int cls) { symbols.push_back(lookup(tables, k, quantizer, cls)); });
    for (size_t row = rows; row-- > 0;)
        for (size_t lane = strip.width; lane-- > 0;) {
            const Coded symbol = symbols[lane * rows + row];
            uint32_t x = states[lane];
            if (x >= static_cast<uint32_t>(symbol.frequency) << 20) {
                words.push_back(static_cast<uint16_t>(x));
                x >>= 16;
            }
            states[lane] = (x / symbol.frequency << kProbabilityBits) + x % symbol.frequency + symbol.cumulative;
        }
}

// The stream's words, in the order of decoding.
class WordReader {
  public:
    explicit WordReader(std::span<const uint8_t> bytes) : next_(bytes.data()), end_(bytes.data() + bytes.size()) {}

    uint32_t read() {
        if (next_ == end_) throw std::invalid_argument("the stream is truncated");
        const uint32_t word = next_[0] | static_cast<uint32_t>(next_[1]) << 8;
        next_ += 2;
        return word;
    }

    bool at_end() const { return next_ == end_; }

  private:
    const uint8_t* next_;
    const uint8_t* end_;
};

void decode_strip(const TableSet& tables, const Strip& strip, std::array<uint32_t, kMaxLanes>& states,
                  WordReader& words, BitReader& escapes, int32_t* output) {
    const Segment& segment = *strip.segment;
    const int classes = tables.classes();
    const int32_t* column_codes = segment.column_codes + strip.first;
    std::array<uint32_t, kMaxLanes> trellis_states{};
    for (size_t row = 0; row < segment.rows; ++row) {
        const int32_t row_code = segment.row_codes[row];
        for (size_t lane = 0; lane < strip.width; ++lane) {
            const int cls = class_of(row_code, column_codes[lane], segment.shift, classes);
            const uint32_t quantizer = trellis_states[lane] & 1U;
            uint32_t x = states[lane];
            const Slot slot = tables.slot(tables.table(quantizer, cls), x & (kTotal - 1));
            if (slot.absent()) throw_absent(quantizer, cls);
            x = slot.frequency() * (x >> kProbabilityBits) + slot.bias();
            if (x < kLowerBound) x = x << 16 | words.read();
            states[lane] = x;
            int32_t k = slot.symbol() - tables.max_magnitude();
            if (slot.symbol() == tables.escape_symbol())
                k = escapes.read_escape(tables.escape_order(cls), tables.max_magnitude());
            output[lane * segment.rows + row] = k;
            trellis_states[lane] = segment.trellis.next(trellis_states[lane], k);
        }
    }
}

}  // namespace

void count_symbols(std::span<const Segment> segments, int classes, int max_magnitude, uint64_t* counts) {
    const auto width = static_cast<size_t>(max_magnitude) + 2;
    for (const Segment& segment : segments)
        visit_columns(segment, 0, segment.columns, classes, [&](int32_t k, uint32_t quantizer, int cls) {
            const uint32_t magnitude = magnitude_of(k);
            check_index(magnitude);
            const size_t table = quantizer * static_cast<size_t>(classes) + static_cast<size_t>(cls);
            ++counts[table * width + std::min<size_t>(magnitude, width - 1)];
        });
}

double stream_bits(const TableSet& tables, std::span<const Segment> segments) {
    std::vector<double> lengths(kTotal, 0.0);
    for (uint32_t frequency = 1; frequency < kTotal; ++frequency)
        lengths[frequency] = kProbabilityBits - std::log2(static_cast<double>(frequency));
    const auto largest = static_cast<uint32_t>(tables.max_magnitude());
    double bits = 0.0;
    for (const Segment& segment : segments)
        visit_columns(segment, 0, segment.columns, tables.classes(), [&](int32_t k, uint32_t quantizer, int cls) {
            const uint32_t magnitude = magnitude_of(k);
            check_index(magnitude);
            bits += lengths[lookup(tables, k, quantizer, cls).frequency];
            if (magnitude > largest) bits += escape_length(magnitude - largest - 1, tables.escape_order(cls));
        });
    return bits;
}

CodedStream encode_stream(const TableSet& tables, std::span<const Segment> segments, int lanes) {
    const std::vector<Strip> strips = strips_of(segments, lanes);
    BitWriter escapes;
    for (const Strip& strip : strips) write_escapes(tables, strip, escapes);
    std::array<uint32_t, kMaxLanes> states;
    states.fill(kLowerBound);
    std::vector<uint16_t> words;
    std::vector<Coded> symbols;
    for (size_t i = strips.size(); i-- > 0;) encode_strip(tables, strips[i], symbols, states, words);
    CodedStream coded;
    coded.escapes = escapes.take();
    coded.stream.reserve(static_cast<size_t>(lanes) * 4 + words.size() * 2);
    for (int lane = 0; lane < lanes; ++lane)
        for (int shift = 0; shift < 32; shift += 8)
            coded.stream.push_back(static_cast<uint8_t>(states[static_cast<size_t>(lane)] >> shift));
    for (size_t i = words.size(); i-- > 0;) {
        coded.stream.push_back(static_cast<uint8_t>(words[i]));
        coded.stream.push_back(static_cast<uint8_t>(words[i] >> 8));
    }
    return coded;
}

void check_capacity(size_t stream_bytes, std::span<const Segment> segments) {
    size_t left = stream_bytes > SIZE_MAX / kIndicesPerByte ? SIZE_MAX : stream_bytes * kIndicesPerByte;
    for (const Segment& segment : segments) {
        if (segment.rows == 0) continue;
        if (segment.columns > left / segment.rows)
            throw std::invalid_argument(std::to_string(stream_bytes) + " bytes cannot hold a matrix of " +
                                        std::to_string(segment.rows) + " rows and " + std::to_string(segment.columns) +
                                        " columns");
        left -= segment.columns * segment.rows;
    }
}

void decode_stream(const TableSet& tables, std::span<const uint8_t> stream, std::span<const uint8_t> escapes,
                   std::span<const Segment> segments, std::span<int32_t* const> outputs, int lanes) {
    const std::vector<Strip> strips = strips_of(segments, lanes);
    const size_t header = static_cast<size_t>(lanes) * 4;
    if (stream.size() < header || (stream.size() - header) % 2 != 0)
        throw std::invalid_argument("a stream of " + std::to_string(lanes) + " lanes cannot have " +
                                    std::to_string(stream.size()) + " bytes");
    std::array<uint32_t, kMaxLanes> states{};
    for (size_t lane = 0; lane < static_cast<size_t>(lanes); ++lane) {
        for (size_t byte = 0; byte < 4; ++byte)
            states[lane] |= static_cast<uint32_t>(stream[lane * 4 + byte]) << (8 * byte);
        if (states[lane] < kLowerBound) throw std::invalid_argument("an initial state is below 2^16");
    }
    WordReader words(stream.subspan(header));
    BitReader bits(escapes);
    for (const Strip& strip : strips)
        decode_strip(tables, strip, states, words, bits,
                     outputs[strip.segment_number] + strip.first * strip.segment->rows);
    if (!words.at_end()) throw std::invalid_argument("the stream holds more words than its indices need");
    for (size_t lane = 0; lane < static_cast<size_t>(lanes); ++lane)
        if (states[lane] != kLowerBound) throw std::invalid_argument("a lane does not end where the encoder began");
    bits.check_end();
}

}  // namespace trueaxis
