// Bytes of a fuzzer as numbers: taken from the front, zeros where they end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

class Input {
   public:
    Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
    uint8_t byte() { return size_ > 0 ? (--size_, *data_++) : uint8_t{0}; }
    uint32_t word() {
        uint32_t value = 0;
        for (int b = 0; b < 4; ++b) value |= uint32_t{byte()} << (8 * b);
        return value;
    }
    // 0 to most, at most 255
    int upto(int most) { return byte() % (most + 1); }
    // A block of its own size, so that a read beyond it is found; shorter where the input ends.
    std::vector<uint8_t> block(size_t count) {
        count = std::min(count, size_);
        const std::vector<uint8_t> taken(data_, data_ + count);
        data_ += count, size_ -= count;
        return taken;
    }
    std::vector<uint8_t> rest() { return block(size_); }

   private:
    const uint8_t* data_;
    size_t size_;
};

// A few bytes changed, added or cut off.
inline void damage(Input& input, std::vector<uint8_t>& bytes) {
    for (int edits = input.upto(3); edits > 0; --edits) {
        const int kind = input.upto(3);
        const size_t at = bytes.empty() ? 0 : input.byte() % bytes.size();
        if (kind == 0) bytes.push_back(input.byte());
        if (kind == 1 && !bytes.empty()) bytes.pop_back();
        if (kind >= 2 && !bytes.empty()) bytes[at] ^= static_cast<uint8_t>(1U << input.upto(7));
    }
}

// Ends the process, which is how a fuzzer learns of a finding.
inline void expect(bool holds) {
    if (!holds) __builtin_trap();
}

}  // namespace trueaxis
