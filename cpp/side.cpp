// Side information coder; see side.hpp.
#include "side.hpp"

#include <bit>
#include <memory>
#include <stdexcept>

namespace trueaxis {
namespace {

constexpr int kExponents = 30;
constexpr uint32_t kRenormalize = 1U << 24;
constexpr size_t kTrimmed = 4;  // zero bytes at the end that the encoder may leave out

// Probability of a zero bit in 1/65536: the mean of a fast and a slow estimate. Both count at first, each decision
// weighing as much as all before it on average, until they forget: short arrays are learned as soon as they can be.
struct Bit {
    static constexpr uint16_t kFast = 16;
    static constexpr uint16_t kSlow = 128;
    uint16_t fast = 1U << 15;
    uint16_t slow = 1U << 15;
    uint16_t weight = 2;
    uint32_t chance() const { return (uint32_t{fast} + slow) >> 1; }
    void update(bool bit) {
        move(fast, bit, weight < kFast ? weight : kFast);
        move(slow, bit, weight);
        if (weight < kSlow) ++weight;
    }

   private:
    static void move(uint16_t& estimate, bool bit, uint16_t share) {
        if (bit)
            estimate -= estimate / share;
        else
            estimate += (65535 - estimate) / share;
    }
};

struct Context {
    Bit zero;
    Bit sign;
    Bit prefix[kExponents + 1];
    Bit mantissa[kExponents + 1];
};

// Width of the part of the range that belongs to a zero bit; never zero, never all.
uint32_t split(uint32_t range, const Bit& bit) {
    const uint32_t chance = bit.chance() >> 4;
    return (range >> 12) * (chance < 1 ? 1 : (chance > 4095 ? 4095 : chance));
}

class Encoder {
   public:
    void code(Bit& model, bool bit) {
        const uint32_t bound = split(range_, model);
        if (bit) {
            low_ += bound;
            range_ -= bound;
        } else {
            range_ = bound;
        }
        model.update(bit);
        renormalize();
    }
    void bypass(bool bit) {
        range_ >>= 1;
        if (bit) low_ += range_;
        renormalize();
    }
    std::vector<uint8_t> finish() {
        // The shortest number inside [low, low + range): zero as many trailing bytes as the range allows.
        for (int drop = 24; drop >= 0; drop -= 8) {
            const uint64_t unit = uint64_t{1} << drop;
            const uint64_t rounded = (low_ + unit - 1) & ~(unit - 1);
            if (rounded < low_ + range_) {
                low_ = rounded;
                break;
            }
        }
        for (int i = 0; i < 4; ++i) shift();
        for (size_t i = 0; i < kTrimmed && !bytes_.empty() && bytes_.back() == 0; ++i) bytes_.pop_back();
        return std::move(bytes_);
    }

   private:
    void renormalize() {
        while (range_ < kRenormalize) {
            range_ <<= 8;
            shift();
        }
    }
    // Moves the top byte of low out; a carry runs back through bytes already written.
    void shift() {
        if (low_ >> 32) {
            for (size_t i = bytes_.size(); i-- > 0 && ++bytes_[i] == 0;) {
            }
        }
        low_ &= 0xFFFFFFFFU;
        bytes_.push_back(static_cast<uint8_t>(low_ >> 24));
        low_ = (low_ << 8) & 0xFFFFFFFFU;
    }

    std::vector<uint8_t> bytes_;
    uint64_t low_ = 0;
    uint32_t range_ = 0xFFFFFFFFU;
};

class Decoder {
   public:
    Decoder(const uint8_t* data, size_t bytes) : data_(data), bytes_(bytes) {
        for (int i = 0; i < 4; ++i) code_ = code_ << 8 | next();
    }
    bool code(Bit& model) {
        const uint32_t bound = split(range_, model);
        const bool bit = code_ >= bound;
        if (bit) {
            code_ -= bound;
            range_ -= bound;
        } else {
            range_ = bound;
        }
        model.update(bit);
        renormalize();
        return bit;
    }
    bool bypass() {
        range_ >>= 1;
        const bool bit = code_ >= range_;
        if (bit) code_ -= range_;
        renormalize();
        return bit;
    }
    void finish() const {
        if (position_ < bytes_) throw std::invalid_argument("side information is longer than its numbers");
    }

   private:
    void renormalize() {
        while (range_ < kRenormalize) {
            range_ <<= 8;
            code_ = code_ << 8 | next();
        }
    }
    uint32_t next() {
        if (position_ < bytes_) return data_[position_++];
        if (++past_ > kTrimmed) throw std::invalid_argument("side information is truncated");
        return 0;
    }

    const uint8_t* data_;
    size_t bytes_;
    size_t position_ = 0;
    size_t past_ = 0;
    uint32_t code_ = 0;
    uint32_t range_ = 0xFFFFFFFFU;
};

}  // namespace

std::vector<uint8_t> encode_integers(const int32_t* values, const uint8_t* contexts, size_t count) {
    const auto models = std::make_unique<Context[]>(256);
    Encoder encoder;
    for (size_t n = 0; n < count; ++n) {
        const int32_t value = values[n];
        if (value > kLargestInteger || value < -kLargestInteger)
            throw std::invalid_argument("encode: a number of the side information is beyond 2^30");
        Context& model = models[contexts[n]];
        encoder.code(model.zero, value != 0);
        if (value == 0) continue;
        encoder.code(model.sign, value < 0);
        const auto magnitude = static_cast<uint32_t>(value < 0 ? -value : value);
        const int exponent = std::bit_width(magnitude) - 1;
        for (int e = 0; e < exponent; ++e) encoder.code(model.prefix[e], true);
        encoder.code(model.prefix[exponent], false);
        for (int b = exponent - 1; b >= 0; --b) {
            const bool bit = (magnitude >> b & 1U) != 0;
            if (b == exponent - 1)
                encoder.code(model.mantissa[exponent], bit);
            else
                encoder.bypass(bit);
        }
    }
    return encoder.finish();
}

void decode_integers(const uint8_t* data, size_t bytes, const uint8_t* contexts, size_t count, int32_t* values) {
    const auto models = std::make_unique<Context[]>(256);
    Decoder decoder(data, bytes);
    for (size_t n = 0; n < count; ++n) {
        Context& model = models[contexts[n]];
        values[n] = 0;
        if (!decoder.code(model.zero)) continue;
        const bool negative = decoder.code(model.sign);
        int exponent = 0;
        while (decoder.code(model.prefix[exponent]))
            if (++exponent >= kExponents) throw std::invalid_argument("side information: a number is out of range");
        uint32_t magnitude = 1;
        for (int b = exponent - 1; b >= 0; --b)
            magnitude =
                magnitude << 1 | (b == exponent - 1 ? decoder.code(model.mantissa[exponent]) : decoder.bypass());
        values[n] = negative ? -static_cast<int32_t>(magnitude) : static_cast<int32_t>(magnitude);
    }
    decoder.finish();
}

}  // namespace trueaxis
