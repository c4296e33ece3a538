// Planes of bits, encoder, portable kernel and what every instruction set shares; see planes.hpp.
#include "planes.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "isa.hpp"
#include "rans.hpp"
#include "table.hpp"

namespace trueaxis {
namespace {

constexpr size_t kBlock = 64 * kPlaneLanes;  // entries on their way through all planes at once, in the first cache
constexpr size_t kReadAhead = 192;           // bytes that a kernel may read beyond the words

uint32_t load(const uint8_t* bytes, int count) {
    uint32_t value = 0;
    for (int b = 0; b < count; ++b) value |= uint32_t{bytes[b]} << (8 * b);
    return value;
}

// A row of `width` lanes.
void decode_row(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t width, uint8_t* symbols) {
    const uint8_t* next = stream.next;
    for (size_t l = 0; l < width; ++l) {
        const uint32_t x = stream.states[l];
        const uint32_t entry = lookup[size_t{contexts[l]} << kProbabilityBits | (x & (kTotal - 1))];
        const uint32_t state = (entry & 0xFFFU) * (x >> kProbabilityBits) + (entry >> 12 & 0xFFFU);
        const uint32_t low = state < kStateFloor ? 1 : 0;
        stream.states[l] = state << (16 * low) | (load(next, 2) & (0U - low));
        next += 2 * low;
        symbols[l] = static_cast<uint8_t>(entry >> 24);
    }
    stream.next = next;
}

void decode_rows(PlaneStream& stream, const uint32_t* lookup, const uint8_t* contexts, size_t rows, uint8_t* symbols) {
    for (size_t i = 0; i < rows && stream.next <= stream.end; ++i)
        decode_row(stream, lookup, contexts + i * kPlaneLanes, kPlaneLanes, symbols + i * kPlaneLanes);
}

PlaneKernel plane_kernel() {
#if defined(__x86_64__)
    if (instruction_set() == Isa::kAvx512) return decode_plane_rows_avx512;
    if (instruction_set() == Isa::kAvx2) return decode_plane_rows_avx2;
#endif
    return decode_rows;
}

// Symbols of a coded plane, block after block.
class PlaneReader {
   public:
    explicit PlaneReader(const Plane& plane) : plane_(plane) {
        const size_t head = 4 * plane.lanes;
        if (plane.bytes < head || plane.bytes % 2 != 0) throw std::invalid_argument("a plane is truncated");
        words_.resize(plane.bytes - head + kReadAhead);
        std::copy(plane.data + head, plane.data + plane.bytes, words_.begin());
        stream_.next = words_.data();
        stream_.end = words_.data() + (plane.bytes - head);
        for (size_t l = 0; l < plane.lanes; ++l) stream_.states[l] = load(plane.data + 4 * l, 4);
    }

    void read(PlaneKernel kernel, const uint8_t* contexts, size_t count, uint8_t* symbols) {
        const uint32_t* lookup = plane_.lookup.data();
        size_t done = 0;
        if (plane_.lanes == kPlaneLanes) {
            const size_t rows = count / kPlaneLanes;
            kernel(stream_, lookup, contexts, rows, symbols);
            done = rows * kPlaneLanes;
        }
        for (; done < count && stream_.next <= stream_.end; done += plane_.lanes)
            decode_row(stream_, lookup, contexts + done, std::min(plane_.lanes, count - done), symbols + done);
        if (stream_.next > stream_.end) throw std::invalid_argument("a plane is truncated");
    }

    uint32_t escape() {
        if (escape_ == plane_.escape_count) throw std::invalid_argument("escapes of a plane are missing");
        return load(plane_.escapes + 2 * escape_++, 2);
    }

    void finish() const {
        for (size_t l = 0; l < plane_.lanes; ++l)
            if (stream_.states[l] != kStateFloor) throw std::invalid_argument("a plane does not end where it began");
        if (stream_.next != stream_.end || escape_ != plane_.escape_count)
            throw std::invalid_argument("a plane is longer than its entries");
    }

   private:
    const Plane& plane_;
    std::vector<uint8_t> words_;
    PlaneStream stream_{};
    size_t escape_ = 0;
};

template <typename T>
constexpr int kWordBits = std::numeric_limits<T>::digits;

template <typename T>
T rotated_left(T value) {
    return static_cast<T>(value << 1 | value >> (kWordBits<T> - 1));
}

template <typename T>
T rotated_right(T value) {
    return static_cast<T>(value >> 1 | value << (kWordBits<T> - 1));
}

// Bits of a float to an integer of the same order, and back.
template <typename T>
T ordered(T bits) {
    const T negative = static_cast<T>(0 - (bits >> (kWordBits<T> - 1)));
    return static_cast<T>(bits ^ (negative & (std::numeric_limits<T>::max() >> 1)));
}

// Words of a block to entries.
template <typename T>
void finish_entries(Residue residue, const T* base, size_t count, T* words) {
    if (residue == Residue::kDifference) {
        for (size_t i = 0; i < count; ++i) {
            const T difference = static_cast<T>(words[i] >> 1 ^ (0 - (words[i] & 1)));
            words[i] = ordered(static_cast<T>(ordered(base[i]) + difference));
        }
    } else {
        for (size_t i = 0; i < count; ++i) words[i] = rotated_right(words[i]);
        if (residue == Residue::kXor)
            for (size_t i = 0; i < count; ++i) words[i] ^= base[i];
    }
}

// value << shift; a product where C++ would shift 32 bits for want of narrower ones, and so halve the vectors.
template <typename T>
T moved_up(uint32_t value, T one) {
    if constexpr (sizeof(T) < 4)
        return static_cast<T>(value * one);
    else
        return static_cast<T>(T{value} * one);
}

template <typename T>
void add_values(const uint16_t* values, int shift, size_t count, T* words) {
    const T one = static_cast<T>(T{1} << shift);
    for (size_t i = 0; i < count; ++i) words[i] = static_cast<T>(words[i] | moved_up(values[i], one));
}

template <typename T, int kBits, int kDown>
void add_part(const uint8_t* data, int shift, size_t count, T* words) {
    constexpr uint8_t mask = (1U << kBits) - 1;
    const T one = static_cast<T>(T{1} << shift);
    for (size_t i = 0; i < count; ++i)
        words[i] = static_cast<T>(words[i] | moved_up(static_cast<uint8_t>(data[i] >> kDown) & mask, one));
}

// Parts of a block lie in a byte side by side: entry i of part p is bits p * kBits and up of byte i.
template <typename T, int kBits, int kDown = 0>
void add_raw(const uint8_t* data, int shift, size_t stride, size_t count, T* words) {
    const size_t length = std::min(stride, count);
    add_part<T, kBits, kDown>(data, shift, length, words);
    if constexpr (kDown + kBits < 8)
        add_raw<T, kBits, kDown + kBits>(data, shift, stride, count - length, words + length);
}

template <typename T>
void add_raw(const uint8_t* data, int bits, int shift, size_t count, T* words) {
    const size_t stride = (count * bits + 7) / 8;
    if (bits == 1) add_raw<T, 1>(data, shift, stride, count, words);
    if (bits == 2) add_raw<T, 2>(data, shift, stride, count, words);
    if (bits == 4) add_raw<T, 4>(data, shift, stride, count, words);
    if (bits == 8) add_raw<T, 8>(data, shift, stride, count, words);
}

template <typename T>
class PlanesDecoder {
   public:
    PlanesDecoder(const std::vector<Plane>& planes, const PlaneContexts& contexts) : contexts_(contexts) {
        int bits = 0;
        for (const Plane& plane : planes) {
            if (plane.bits < 1 || plane.bits > 16) throw std::invalid_argument("planes: bits are not 1 to 16");
            bits += plane.bits;
        }
        if (bits != kWordBits<T>) throw std::invalid_argument("planes: their bits do not make an entry");
        for (const Plane& plane : planes) {
            bits -= plane.bits;
            shifts_.push_back(bits);
            if (plane.kind == PlaneKind::kCoded) readers_.emplace_back(plane);
        }
    }

    // Entries [first, first + count) of a block.
    void decode(const std::vector<Plane>& planes, Residue residue, size_t first, size_t count, const T* base, T* out) {
        std::fill_n(out, count, T{0});
        const bool wanted = std::any_of(planes.begin(), planes.end(), [](const Plane& p) { return p.with_contexts; });
        if (wanted) fill_contexts(first, count, base);
        const PlaneKernel kernel = plane_kernel();
        auto reader = readers_.begin();
        for (size_t p = 0; p < planes.size(); ++p) {
            const Plane& plane = planes[p];
            if (plane.kind == PlaneKind::kRaw) {
                add_raw(plane.data + (first * plane.bits) / 8, plane.bits, shifts_[p], count, out);
            } else if (plane.kind == PlaneKind::kCoded) {
                reader->read(kernel, plane.with_contexts ? numbers_ : zeros_, count, symbols_);
                fill_values(*reader, plane, count);
                add_values(values_, shifts_[p], count, out);
                ++reader;
            }
        }
        finish_entries(residue, base, count, out);
    }

    void finish() const {
        for (const PlaneReader& reader : readers_) reader.finish();
    }

   private:
    void fill_contexts(size_t first, size_t count, const T* base) {
        const int last = contexts_.count - 1;
        if (last == 0) {
            std::fill_n(numbers_, count, uint8_t{0});
            return;
        }
        if (contexts_.of_base) {
            for (size_t i = 0; i < count; ++i) {
                const auto place = static_cast<int>(rotated_left(base[i]) >> contexts_.shift);
                numbers_[i] = static_cast<uint8_t>(std::clamp(contexts_.top - place, 0, last));
            }
            return;
        }
        for (size_t done = 0; done < count;) {
            const size_t row = (first + done) / contexts_.columns;
            const size_t column = (first + done) % contexts_.columns;
            const size_t length = std::min(count - done, contexts_.columns - column);
            const int16_t row_code = contexts_.row_codes[row];
            const int16_t* codes = contexts_.column_codes + column;
            const auto limit = static_cast<int16_t>(last);
            for (size_t i = 0; i < length; ++i) {
                const auto sum = static_cast<int16_t>(row_code + codes[i]);
                numbers_[done + i] = static_cast<uint8_t>(std::min<int16_t>(std::max<int16_t>(sum, int16_t{0}), limit));
            }
            done += length;
        }
    }

    // Values of the symbols of a block, escapes in their places.
    void fill_values(PlaneReader& reader, const Plane& plane, size_t count) {
        const auto mask = static_cast<uint16_t>((1U << plane.bits) - 1);
        const auto offset = static_cast<uint16_t>(plane.offset);
        for (size_t i = 0; i < count; ++i) values_[i] = static_cast<uint16_t>((symbols_[i] + offset) & mask);
        if (plane.escape_count == 0) return;
        for (size_t i = 0; i < count; ++i)
            if (symbols_[i] == kPlaneEscape) values_[i] = static_cast<uint16_t>(reader.escape() & mask);
    }

    const PlaneContexts& contexts_;
    std::vector<PlaneReader> readers_;
    std::vector<int> shifts_;
    uint8_t numbers_[kBlock];
    uint8_t symbols_[kBlock];
    uint16_t values_[kBlock];
    const uint8_t zeros_[kBlock] = {};
};

template <typename T>
void decode_entries(const std::vector<Plane>& planes, const PlaneContexts& contexts, Residue residue, size_t count,
                    const uint8_t* base, uint8_t* out) {
    PlanesDecoder<T> decoder(planes, contexts);
    T theirs[kBlock];
    T entries[kBlock];
    for (size_t first = 0; first < count; first += kBlock) {
        const size_t length = std::min(kBlock, count - first);
        if (base != nullptr) std::memcpy(theirs, base + first * sizeof(T), length * sizeof(T));
        decoder.decode(planes, residue, first, length, theirs, entries);
        std::memcpy(out + first * sizeof(T), entries, length * sizeof(T));
    }
    decoder.finish();
}

}  // namespace

void check_plane_frequencies(const uint16_t* frequencies, size_t contexts) {
    for (size_t c = 0; c < contexts; ++c) {
        uint32_t sum = 0;
        for (int s = 0; s < kPlaneSymbols; ++s) {
            const uint32_t frequency = frequencies[c * kPlaneSymbols + s];
            if (frequency >= kTotal) throw std::invalid_argument("planes: a frequency is 4096 or more");
            sum += frequency;
        }
        if (sum != 0 && sum != kTotal) throw std::invalid_argument("planes: frequencies do not sum to 4096");
    }
}

std::vector<uint32_t> plane_lookup(const uint16_t* frequencies, size_t contexts) {
    check_plane_frequencies(frequencies, contexts);
    std::vector<uint32_t> lookup(contexts * kTotal, 0);
    for (size_t c = 0; c < contexts; ++c) {
        uint32_t* slot = lookup.data() + c * kTotal;
        for (uint32_t s = 0; s < kPlaneSymbols; ++s)
            for (uint32_t i = 0, f = frequencies[c * kPlaneSymbols + s]; i < f; ++i) *slot++ = f | i << 12 | s << 24;
    }
    return lookup;
}

std::vector<uint8_t> encode_plane(const uint8_t* symbols, const uint8_t* contexts, size_t count,
                                  const uint16_t* frequencies, size_t context_count, size_t lanes) {
    check_plane_frequencies(frequencies, context_count);
    std::vector<uint32_t> starts(context_count * kPlaneSymbols);
    for (size_t c = 0; c < context_count; ++c)
        for (size_t s = 1; s < kPlaneSymbols; ++s)
            starts[c * kPlaneSymbols + s] = starts[c * kPlaneSymbols + s - 1] + frequencies[c * kPlaneSymbols + s - 1];
    std::vector<uint32_t> states(lanes, kStateFloor);
    std::vector<uint16_t> words;
    for (size_t i = count; i-- > 0;) {
        const size_t at = contexts[i] * size_t{kPlaneSymbols} + symbols[i];
        const uint32_t frequency = contexts[i] < context_count ? frequencies[at] : 0;
        if (frequency == 0) throw std::invalid_argument("encode: a symbol of a plane has no frequency");
        uint32_t& x = states[i % lanes];
        if (x >= uint64_t{frequency} << (32 - kProbabilityBits)) {
            words.push_back(static_cast<uint16_t>(x));
            x >>= 16;
        }
        x = (x / frequency << kProbabilityBits) + x % frequency + starts[at];
    }
    std::vector<uint8_t> bytes;
    bytes.reserve(4 * lanes + 2 * words.size());
    const auto append = [&](uint32_t value, int size) {
        for (int b = 0; b < size; ++b) bytes.push_back(static_cast<uint8_t>(value >> (8 * b)));
    };
    for (const uint32_t state : states) append(state, 4);
    for (size_t w = words.size(); w-- > 0;) append(words[w], 2);
    return bytes;
}

void decode_planes(const std::vector<Plane>& planes, const PlaneContexts& contexts, Residue residue, int width,
                   size_t count, const uint8_t* base, uint8_t* out) {
    if (width == 1) return decode_entries<uint8_t>(planes, contexts, residue, count, base, out);
    if (width == 2) return decode_entries<uint16_t>(planes, contexts, residue, count, base, out);
    if (width == 4) return decode_entries<uint32_t>(planes, contexts, residue, count, base, out);
    if (width == 8) return decode_entries<uint64_t>(planes, contexts, residue, count, base, out);
    throw std::invalid_argument("planes: entries are not of 1, 2, 4 or 8 bytes");
}

}  // namespace trueaxis
