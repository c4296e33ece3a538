// Frequency tables: symmetric 12-bit tables, one per trellis quantizer and scale class, with their decoding look-up.
//
//   counts ─▶ normalize_counts ─▶ frequencies ─▶ TableSet (checked) ─▶ rANS
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace trueaxis {

constexpr int kProbabilityBits = 12;
constexpr uint32_t kTotal = 1U << kProbabilityBits;
constexpr int kQuantizers = 2;
constexpr int kMostClasses = 64;
constexpr int32_t kLargestIndex = 1 << 24;
constexpr int kLargestOrder = 24;

struct Symbol {
    uint64_t reciprocal;  // ⌈2^44 / frequency⌉: ⌊x / frequency⌋ = x · reciprocal >> 44 for x < frequency · 2^20
    uint16_t frequency;
    uint16_t start;  // cumulative frequency before it
};
constexpr int kReciprocalBits = 44;

class TableSet {
   public:
    // frequencies [2, classes, K + 2]: of +-k for |k| = 0..K, then of an escape. Throws std::invalid_argument.
    TableSet(const uint16_t* frequencies, const uint8_t* escape_orders, int classes, int max_magnitude);

    int classes() const { return classes_; }
    int max_magnitude() const { return max_magnitude_; }
    int escape_order(int cls) const { return escape_orders_[cls]; }
    bool present(int quantizer, int cls) const { return !lookup_[table(quantizer, cls)].empty(); }
    int escape_symbol() const { return 2 * max_magnitude_ + 1; }
    // Symbols 0..2K are k = -K..K, 2K + 1 is the escape.
    const Symbol& symbol(int quantizer, int cls, int index) const {
        return symbols_[static_cast<size_t>(table(quantizer, cls)) * symbol_count() + index];
    }
    // All symbols; those of a table start at symbols_at.
    const Symbol* symbols() const { return symbols_.data(); }
    int symbols_at(int quantizer, int cls) const { return table(quantizer, cls) * symbol_count(); }
    // [2, classes, 4096]: frequency | slot − start << 12 | k << 24, k = −64 for an escape or where a table is absent.
    // Made on first use.
    const uint32_t* decoding_table() const;
    int find(int quantizer, int cls, uint32_t slot) const { return lookup_[table(quantizer, cls)][slot]; }

   private:
    int table(int quantizer, int cls) const { return quantizer * classes_ + cls; }
    int symbol_count() const { return 2 * max_magnitude_ + 2; }

    int classes_;
    int max_magnitude_;
    std::vector<uint8_t> escape_orders_;
    std::vector<Symbol> symbols_;
    std::vector<std::vector<uint8_t>> lookup_;  // [2 * classes] slot -> symbol; empty where absent
    mutable std::once_flag once_;
    mutable std::vector<uint32_t> decoding_table_;
};

// counts [K + 2] of |k| = 0..K and escapes to frequencies that sum to 4096 over all symbols; zeros to zeros.
void normalize_counts(const uint64_t* counts, int max_magnitude, uint16_t* frequencies);

}  // namespace trueaxis
