// Frequency tables: what the coder believes about an index, given its class and the quantizer of its trellis state.
//
//   counts of |k| ─▶ normalize_counts ─▶ 12-bit frequencies ─▶ TableSet ─▶ rans.cpp
//
// Frequencies are integers, so that encoder and decoder agree bit for bit. A table is symmetric: entry m <= K is the
// frequency of +m and also of −m, entry K + 1 that of the escape. Symbols lie in the order −K … K, escape.
//
// References: Duda, Asymmetric numeral systems (arXiv:1311.2540), for quantized probabilities in rANS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trueaxis {

constexpr int kProbabilityBits = 12;
constexpr uint32_t kTotal = 1U << kProbabilityBits;
constexpr int kMaxClasses = 64;
constexpr int kMaxEscapeOrder = 24;

// Whether K is a size of alphabet that the format has.
constexpr bool is_alphabet(size_t max_magnitude) {
    return max_magnitude == 7 || max_magnitude == 15 || max_magnitude == 31 || max_magnitude == 63;
}

// What the decoder knows about one of the 4096 slots of a table; all zero where the table is absent.
struct Slot {
    uint32_t packed = 0;  // frequency << 20 | (slot − cumulative) << 8 | symbol

    bool absent() const { return packed == 0; }
    uint32_t frequency() const { return packed >> 20; }
    uint32_t bias() const { return (packed >> 8) & (kTotal - 1); }
    int symbol() const { return static_cast<int>(packed & 255U); }
};

// The validated tables of a model for both quantizers and all classes. Immutable.
class TableSet {
  public:
    // frequencies [2, classes, width] with width = K + 2, escape_orders [classes]; throws std::invalid_argument.
    TableSet(const uint16_t* frequencies, size_t classes, size_t width, const uint8_t* escape_orders);

    int classes() const { return classes_; }
    int max_magnitude() const { return max_magnitude_; }
    int escape_symbol() const { return 2 * max_magnitude_ + 1; }
    int escape_order(int cls) const { return escape_orders_[cls]; }
    size_t table(uint32_t quantizer, int cls) const { return quantizer * static_cast<size_t>(classes_) + cls; }
    bool present(size_t table) const { return cumulative_[(table + 1) * stride_ - 1] != 0; }

    // Frequency of symbol 0 … 2K + 1, zero where the table gives it no probability.
    uint32_t frequency(size_t table, int symbol) const {
        return cumulative(table, symbol + 1) - cumulative(table, symbol);
    }
    uint32_t cumulative(size_t table, int symbol) const { return cumulative_[table * stride_ + symbol]; }
    Slot slot(size_t table, uint32_t position) const { return slots_[table * kTotal + position]; }

  private:
    void add_table(size_t table, const uint16_t* frequencies);

    int classes_;
    int max_magnitude_;
    size_t stride_;  // 2K + 3
    std::vector<uint8_t> escape_orders_;
    std::vector<uint16_t> cumulative_;  // [2 · classes, 2K + 3]
    std::vector<Slot> slots_;           // [2 · classes, 4096]
};

// Frequencies [width] of nearly the least code length for counts [width] of |k| = 0 … K (both signs) and of escapes.
// Every counted symbol and zero get at least one slot; no counts at all give an absent table.
void normalize_counts(const double* counts, size_t width, uint16_t* frequencies);

}  // namespace trueaxis
