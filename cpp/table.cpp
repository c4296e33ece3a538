// Frequency tables; see table.hpp.
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace trueaxis {
namespace {

bool known_alphabet(int k) { return k == 7 || k == 15 || k == 31 || k == 63; }

}  // namespace

TableSet::TableSet(const uint16_t* frequencies, const uint8_t* escape_orders, int classes, int max_magnitude)
    : classes_(classes), max_magnitude_(max_magnitude), escape_orders_(escape_orders, escape_orders + classes) {
    if (!known_alphabet(max_magnitude)) throw std::invalid_argument("tables: alphabet is not 7, 15, 31 or 63");
    for (const uint8_t order : escape_orders_)
        if (order > kLargestOrder) throw std::invalid_argument("tables: an escape order is above 24");
    const int tables = kQuantizers * classes;
    symbols_.resize(static_cast<size_t>(tables) * symbol_count());
    lookup_.resize(tables);
    for (int t = 0; t < tables; ++t) {
        const uint16_t* row = frequencies + static_cast<size_t>(t) * (max_magnitude + 2);
        Symbol* symbols = symbols_.data() + static_cast<size_t>(t) * symbol_count();
        uint32_t start = 0;
        for (int s = 0; s < symbol_count(); ++s) {
            const int magnitude = s == escape_symbol() ? max_magnitude + 1 : std::abs(s - max_magnitude);
            if (row[magnitude] >= kTotal) throw std::invalid_argument("tables: a frequency is 4096 or more");
            const uint64_t reciprocal =
                row[magnitude] == 0 ? 0 : ((uint64_t{1} << kReciprocalBits) + row[magnitude] - 1) / row[magnitude];
            symbols[s] = {reciprocal, row[magnitude], static_cast<uint16_t>(start)};
            start += row[magnitude];
            if (start > kTotal) break;
        }
        if (start == 0) continue;
        if (start != kTotal) throw std::invalid_argument("tables: the frequencies of a table do not sum to 4096");
        lookup_[t].resize(kTotal);
        for (int s = 0; s < symbol_count(); ++s)
            std::fill_n(lookup_[t].begin() + symbols[s].start, symbols[s].frequency, static_cast<uint8_t>(s));
    }
}

const uint32_t* TableSet::decoding_table() const {
    std::call_once(once_, [this] {
        constexpr uint32_t mark = 0xC0U << 24;
        decoding_table_.assign(static_cast<size_t>(kQuantizers) * classes_ * kTotal, mark);
        for (int t = 0; t < kQuantizers * classes_; ++t) {
            if (lookup_[t].empty()) continue;
            for (uint32_t slot = 0; slot < kTotal; ++slot) {
                const int s = lookup_[t][slot];
                const Symbol& symbol = symbols_[static_cast<size_t>(t) * symbol_count() + s];
                const uint32_t k = s == escape_symbol() ? mark : static_cast<uint32_t>(s - max_magnitude_) << 24;
                decoding_table_[static_cast<size_t>(t) * kTotal + slot] =
                    symbol.frequency | (slot - symbol.start) << 12 | k;
            }
        }
    });
    return decoding_table_.data();
}

void normalize_counts(const uint64_t* counts, int max_magnitude, uint16_t* frequencies) {
    const int escape = max_magnitude + 1;
    std::fill_n(frequencies, max_magnitude + 2, uint16_t{0});
    double total = 0.0;
    for (int m = 0; m <= escape; ++m) total += static_cast<double>(counts[m]);
    if (total == 0.0) return;
    // Magnitudes above zero take two slots each; zero takes what is left, which settles the parity.
    std::vector<int> slots(max_magnitude + 2, 0);
    const auto ideal = [&](int m) { return static_cast<double>(counts[m]) / total * kTotal; };
    int used = 0;
    for (int m = 1; m <= escape; ++m) {
        if (counts[m] == 0) continue;
        slots[m] = std::max(1, static_cast<int>(std::lround(ideal(m) / (m == escape ? 1 : 2))));
        used += m == escape ? slots[m] : 2 * slots[m];
    }
    const auto zero_left = [&] { return static_cast<int>(kTotal) - used; };
    // Cost in bits of changing symbol m from f to g slots.
    const auto change = [&](int m, int f, int g) {
        return static_cast<double>(counts[m]) * (std::log2(static_cast<double>(f)) - std::log2(static_cast<double>(g)));
    };
    const auto width = [&](int m) { return m == escape ? 1 : 2; };
    while (true) {  // trade slots between zero and the others while that shortens the code, or until zero has one
        int best = 0;
        int direction = 0;
        double best_cost = zero_left() < 1 ? INFINITY : -1e-9;
        for (int m = 1; m <= escape; ++m) {
            if (slots[m] == 0) continue;
            const int zero = zero_left();
            if (slots[m] > 1) {
                double cost = change(m, slots[m], slots[m] - 1);
                if (zero >= 1) cost += change(0, zero, zero + width(m));
                if (cost < best_cost) best = m, direction = -1, best_cost = cost;
            }
            if (zero - width(m) >= 1) {
                const double cost = change(m, slots[m], slots[m] + 1) + change(0, zero, zero - width(m));
                if (cost < best_cost) best = m, direction = 1, best_cost = cost;
            }
        }
        if (direction == 0) break;
        slots[best] += direction;
        used += direction * width(best);
    }
    if (zero_left() == static_cast<int>(kTotal)) {
        slots[escape] = 1;  // a frequency of 4096 does not fit 12 bits
        used = 1;
    }
    slots[0] = zero_left();
    for (int m = 0; m <= escape; ++m) frequencies[m] = static_cast<uint16_t>(slots[m]);
}

}  // namespace trueaxis
