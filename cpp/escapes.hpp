// Escapes: magnitudes beyond the alphabet, as Exp-Golomb codes in a bit stream beside the words.
//
//   k ─▶ sign, then |k| − K − 1 in Exp-Golomb code of the class's order ─▶ bits, most significant first
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

class EscapeWriter {
   public:
    void put(int32_t k, int max_magnitude, int order);
    std::vector<uint8_t> take() { return std::move(bytes_); }

   private:
    void put_bits(uint32_t value, int count);

    std::vector<uint8_t> bytes_;
    size_t used_ = 0;
};

// Every read is bounded; throws std::invalid_argument on bytes that EscapeWriter cannot have written.
class EscapeReader {
   public:
    EscapeReader(const uint8_t* data, size_t bytes) : data_(data), bits_(bytes * 8) {}
    int32_t get(int max_magnitude, int order);
    void finish();

   private:
    uint32_t get_bits(int count);

    const uint8_t* data_;
    size_t bits_;
    size_t used_ = 0;
};

int escape_bits(int32_t k, int max_magnitude, int order);

}  // namespace trueaxis
