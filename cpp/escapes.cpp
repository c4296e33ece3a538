// Escapes; see escapes.hpp.
#include "escapes.hpp"

#include <bit>
#include <cstdlib>
#include <stdexcept>

#include "table.hpp"

namespace trueaxis {

void EscapeWriter::put_bits(uint32_t value, int count) {
    for (int b = count; b-- > 0;) {
        if (used_ % 8 == 0) bytes_.push_back(0);
        bytes_.back() |= static_cast<uint8_t>(((value >> b) & 1U) << (7 - used_ % 8));
        ++used_;
    }
}

void EscapeWriter::put(int32_t k, int max_magnitude, int order) {
    const auto excess = static_cast<uint32_t>(std::abs(k) - max_magnitude - 1);
    const uint32_t scaled = (excess >> order) + 1;
    const int length = std::bit_width(scaled);
    put_bits(k < 0 ? 1 : 0, 1);
    put_bits(0, length - 1);
    put_bits(scaled, length);
    put_bits(excess & ((1U << order) - 1), order);
}

uint32_t EscapeReader::get_bits(int count) {
    if (static_cast<size_t>(count) > bits_ - used_) throw std::invalid_argument("stream: escapes are truncated");
    uint32_t value = 0;
    for (int b = 0; b < count; ++b, ++used_) value = value << 1 | (data_[used_ / 8] >> (7 - used_ % 8) & 1U);
    return value;
}

int32_t EscapeReader::get(int max_magnitude, int order) {
    const bool negative = get_bits(1) != 0;
    int zeros = 0;
    while (get_bits(1) == 0)
        if (++zeros > kLargestOrder) throw std::invalid_argument("stream: an escape is out of range");
    const uint64_t scaled = (uint64_t{1} << zeros) | get_bits(zeros);
    const uint64_t excess = ((scaled - 1) << order) | get_bits(order);
    const uint64_t magnitude = excess + max_magnitude + 1;
    if (magnitude > static_cast<uint64_t>(kLargestIndex))
        throw std::invalid_argument("stream: an escape is out of range");
    return negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
}

void EscapeReader::finish() {
    if (bits_ - used_ >= 8 || get_bits(static_cast<int>(bits_ - used_)) != 0)
        throw std::invalid_argument("stream: escapes are longer than their symbols");
}

int escape_bits(int32_t k, int max_magnitude, int order) {
    const auto excess = static_cast<uint32_t>(std::abs(k) - max_magnitude - 1);
    return 2 * std::bit_width((excess >> order) + 1) + order;
}

}  // namespace trueaxis
