// Adaptive binary range coder for side information; see side.hpp.
#include "side.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <string>

#include "trellis.hpp"

namespace trueaxis {
namespace {

constexpr uint32_t kRenormalizeBelow = 1U << 24;
constexpr size_t kReadAhead = 4;  // bytes that the flush may leave out

// Probability that a bit is 0, in 1/65536; both estimates stay within 1 … 65535.
class AdaptiveBit {
  public:
    uint32_t probability() const { return (static_cast<uint32_t>(fast_) + slow_) >> 1; }

    void update(bool bit) {
        const int shift = std::bit_width(seen_ + 1U);
        adapt(fast_, bit, std::min(shift, kFastShift));
        adapt(slow_, bit, std::min(shift, kSlowShift));
        if (shift < kSlowShift) ++seen_;
    }

  private:
    static constexpr int kFastShift = 4;
    static constexpr int kSlowShift = 7;

    static void adapt(uint16_t& estimate, bool bit, int shift) {
        const uint32_t value = estimate;
        estimate = static_cast<uint16_t>(bit ? value - (value >> shift) : value + ((65536U - value) >> shift));
    }

    uint16_t fast_ = 32768;
    uint16_t slow_ = 32768;
    uint8_t seen_ = 0;
};

// The adaptive bits of one context.
struct IntegerModel {
    AdaptiveBit nonzero;
    AdaptiveBit negative;
    std::array<AdaptiveBit, kExponentLimit> longer;    // is the exponent above e
    std::array<AdaptiveBit, kExponentLimit> mantissa;  // first bit below the leading one, given the exponent
};

using Models = std::array<IntegerModel, 256>;

class RangeEncoder {
  public:
    void encode(bool bit, AdaptiveBit& model) {
        const auto bound = static_cast<uint32_t>((static_cast<uint64_t>(range_) * model.probability()) >> 16);
        if (bit) low_ += bound;
        range_ = bit ? range_ - bound : bound;
        model.update(bit);
        renormalize();
    }

    void encode_bypass(uint32_t value, int count) {
        while (count-- > 0) {
            range_ >>= 1;
            if ((value >> count & 1U) != 0) low_ += range_;
            renormalize();
        }
    }

    // Ends at the number in the interval with most trailing zeros; the decoder reads zeros past the end.
    std::vector<uint8_t> finish() {
        int zeros = 32;
        uint64_t end = 0;
        do {
            const uint64_t mask = (uint64_t{1} << zeros) - 1;
            end = (low_ + mask) & ~mask;
        } while (end - low_ >= range_ && zeros-- > 0);
        low_ = end;
        for (size_t i = 0; i <= kReadAhead; ++i) shift_low();
        for (size_t i = 0; i < kReadAhead && bytes_.back() == 0; ++i) bytes_.pop_back();
        return std::move(bytes_);
    }

  private:
    void renormalize() {
        while (range_ < kRenormalizeBelow) {
            range_ <<= 8;
            shift_low();
        }
    }

    // Moves the top byte of `low_` out; bytes of 255 wait until it is known whether a carry runs through them.
    void shift_low() {
        if (low_ < 0xFF000000U || low_ > 0xFFFFFFFFU) {
            const auto carry = static_cast<uint8_t>(low_ >> 32);
            if (started_) bytes_.push_back(static_cast<uint8_t>(held_ + carry));
            bytes_.insert(bytes_.end(), waiting_, static_cast<uint8_t>(0xFFU + carry));
            started_ = true;
            waiting_ = 0;
            held_ = static_cast<uint8_t>(low_ >> 24);
        } else {
            ++waiting_;
        }
        low_ = (low_ & 0x00FFFFFFU) << 8;
    }

    uint64_t low_ = 0;
    uint32_t range_ = 0xFFFFFFFFU;
    uint8_t held_ = 0;
    bool started_ = false;
    size_t waiting_ = 0;
    std::vector<uint8_t> bytes_;
};

class RangeDecoder {
  public:
    explicit RangeDecoder(std::span<const uint8_t> bytes) : bytes_(bytes) {
        for (size_t i = 0; i < kReadAhead; ++i) code_ = code_ << 8 | next_byte();
        if (code_ >= range_) throw std::invalid_argument("the side information begins with an impossible number");
    }

    bool decode(AdaptiveBit& model) {
        const auto bound = static_cast<uint32_t>((static_cast<uint64_t>(range_) * model.probability()) >> 16);
        const bool bit = code_ >= bound;
        if (bit) code_ -= bound;
        range_ = bit ? range_ - bound : bound;
        model.update(bit);
        renormalize();
        return bit;
    }

    uint32_t decode_bypass(int count) {
        uint32_t value = 0;
        while (count-- > 0) {
            range_ >>= 1;
            const bool bit = code_ >= range_;
            if (bit) code_ -= range_;
            value = value << 1 | static_cast<uint32_t>(bit);
            renormalize();
        }
        return value;
    }

    void check_end() const {
        if (position_ < bytes_.size())
            throw std::invalid_argument("the side information is " + std::to_string(bytes_.size()) +
                                        " bytes long but its values end after " + std::to_string(position_));
    }

  private:
    void renormalize() {
        while (range_ < kRenormalizeBelow) {
            range_ <<= 8;
            code_ = code_ << 8 | next_byte();
        }
    }

    uint32_t next_byte() {
        if (position_ >= bytes_.size() + kReadAhead) throw std::invalid_argument("the side information is truncated");
        const uint32_t byte = position_ < bytes_.size() ? bytes_[position_] : 0U;
        ++position_;
        return byte;
    }

    std::span<const uint8_t> bytes_;
    size_t position_ = 0;
    uint32_t range_ = 0xFFFFFFFFU;
    uint32_t code_ = 0;
};

void encode_integer(RangeEncoder& coder, IntegerModel& model, int32_t value) {
    coder.encode(value != 0, model.nonzero);
    if (value == 0) return;
    coder.encode(value < 0, model.negative);
    const uint32_t magnitude = magnitude_of(value);
    const int exponent = std::bit_width(magnitude) - 1;
    if (exponent >= kExponentLimit)
        throw std::invalid_argument("side information holds " + std::to_string(value) + "; expected within ±2^30");
    for (int e = 0; e <= exponent; ++e) coder.encode(e < exponent, model.longer[static_cast<size_t>(e)]);
    if (exponent == 0) return;
    coder.encode((magnitude >> (exponent - 1) & 1U) != 0, model.mantissa[static_cast<size_t>(exponent)]);
    coder.encode_bypass(magnitude, exponent - 1);
}

int32_t decode_integer(RangeDecoder& coder, IntegerModel& model) {
    if (!coder.decode(model.nonzero)) return 0;
    const bool negative = coder.decode(model.negative);
    int exponent = 0;
    while (coder.decode(model.longer[static_cast<size_t>(exponent)]))
        if (++exponent >= kExponentLimit) throw std::invalid_argument("side information holds a value beyond ±2^30");
    uint32_t magnitude = 1;
    if (exponent > 0) {
        const bool bit = coder.decode(model.mantissa[static_cast<size_t>(exponent)]);
        magnitude = magnitude << 1 | static_cast<uint32_t>(bit);
        magnitude = magnitude << (exponent - 1) | coder.decode_bypass(exponent - 1);
    }
    return negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
}

}  // namespace

std::vector<uint8_t> encode_integers(std::span<const int32_t> values, std::span<const uint8_t> contexts) {
    Models models;
    RangeEncoder coder;
    for (size_t i = 0; i < values.size(); ++i) encode_integer(coder, models[contexts[i]], values[i]);
    return coder.finish();
}

void decode_integers(std::span<const uint8_t> bytes, std::span<const uint8_t> contexts, int32_t* values) {
    Models models;
    RangeDecoder coder(bytes);
    for (size_t i = 0; i < contexts.size(); ++i) values[i] = decode_integer(coder, models[contexts[i]]);
    coder.check_end();
}

}  // namespace trueaxis
