// Checking, laying out and fitting of frequency tables; see table.hpp.
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace trueaxis {
namespace {

constexpr double kInfeasible = std::numeric_limits<double>::infinity();

// Descent on code length Σ count · −log2(frequency) over tables that sum to 4096. Zero takes up what is left over: it
// moves by two slots with a pair ±m and by one with the escape. The cost is separable and convex, so stopping where no
// single exchange helps is stopping at or next to the optimum.
class Fit {
  public:
    Fit(const double* counts, size_t width) : counts_(counts), escape_(width - 1), frequencies_(width) {
        for (size_t i = 0; i < width; ++i) total_ += counts[i];
        start();
        while (frequencies_[0] < 1) make_room();
        while (improve()) {
        }
        if (frequencies_[0] == static_cast<int>(kTotal)) {
            frequencies_[0] -= 1;
            frequencies_[escape_] = 1;
        }
    }

    const std::vector<int>& frequencies() const { return frequencies_; }

  private:
    void start() {
        int left = kTotal;
        for (size_t i = 1; i <= escape_; ++i) {
            if (counts_[i] <= 0.0) continue;
            const int slots = i == escape_ ? 1 : 2;
            const double share = counts_[i] / total_ * kTotal / slots;
            frequencies_[i] = std::max(1, static_cast<int>(std::lround(share)));
            left -= slots * frequencies_[i];
        }
        frequencies_[0] = left;
    }

    // Rise of the code length when a frequency changes by `delta`.
    double rise(size_t i, int delta) const {
        if (delta == 0) return 0.0;
        const int changed = frequencies_[i] + delta;
        const int floor = i == 0 || counts_[i] > 0.0 ? 1 : 0;
        if (changed < floor) return kInfeasible;
        if (counts_[i] <= 0.0) return 0.0;
        return counts_[i] * std::log2(static_cast<double>(frequencies_[i]) / changed);
    }

    // The pair ±m whose change by `delta` costs least, or 0 where no pair can change.
    size_t best_pair(int delta) const {
        size_t best = 0;
        double best_rise = kInfeasible;
        for (size_t i = 1; i < escape_; ++i) {
            if (counts_[i] <= 0.0) continue;
            const double candidate = rise(i, delta);
            if (candidate < best_rise) {
                best_rise = candidate;
                best = i;
            }
        }
        return best;
    }

    // Gives zero slots that rounding handed out twice.
    void make_room() {
        const size_t pair = best_pair(-1);
        const double pair_rise = pair == 0 ? kInfeasible : rise(pair, -1) / 2;
        if (rise(escape_, -1) < pair_rise) {
            frequencies_[escape_] -= 1;
            frequencies_[0] += 1;
        } else {
            frequencies_[pair] -= 1;
            frequencies_[0] += 2;
        }
    }

    // Carries out the exchange that saves most; false where none saves anything.
    bool improve() {
        struct Exchange {
            size_t raised, lowered;
            int escape, zero;
        };
        const size_t candidates[2] = {best_pair(1), best_pair(-1)};
        Exchange best{};
        double best_rise = -1e-12 * total_;
        const auto consider = [&](const Exchange& exchange) {
            double sum = rise(escape_, exchange.escape) + rise(0, exchange.zero);
            if (exchange.raised != 0) sum += rise(exchange.raised, 1);
            if (exchange.lowered != 0) sum += rise(exchange.lowered, -1);
            if (sum < best_rise) {
                best_rise = sum;
                best = exchange;
            }
        };
        const double none = best_rise;
        for (int escape = -2; escape <= 2; ++escape) {
            consider({0, 0, escape, -escape});
            if (candidates[0] != 0) consider({candidates[0], 0, escape, -escape - 2});
            if (candidates[1] != 0) consider({0, candidates[1], escape, -escape + 2});
        }
        if (candidates[0] != 0 && candidates[1] != 0 && candidates[0] != candidates[1])
            consider({candidates[0], candidates[1], 0, 0});
        if (best_rise == none) return false;
        if (best.raised != 0) frequencies_[best.raised] += 1;
        if (best.lowered != 0) frequencies_[best.lowered] -= 1;
        frequencies_[escape_] += best.escape;
        frequencies_[0] += best.zero;
        return true;
    }

    const double* counts_;
    size_t escape_;
    std::vector<int> frequencies_;
    double total_ = 0.0;
};

void check_table(const uint16_t* frequencies, size_t table, size_t classes, size_t width) {
    uint32_t sum = frequencies[0] + frequencies[width - 1];
    uint32_t largest = std::max(frequencies[0], frequencies[width - 1]);
    for (size_t m = 1; m + 1 < width; ++m) {
        sum += 2U * frequencies[m];
        largest = std::max<uint32_t>(largest, frequencies[m]);
    }
    const std::string name =
        "the table of quantizer " + std::to_string(table / classes) + ", class " + std::to_string(table % classes);
    if (sum != 0 && sum != kTotal)
        throw std::invalid_argument(name + " sums to " + std::to_string(sum) + "; expected 4096, or 0 where absent");
    if (largest >= kTotal) throw std::invalid_argument(name + " has a frequency above 4095");
}

}  // namespace

TableSet::TableSet(const uint16_t* frequencies, size_t classes, size_t width, const uint8_t* escape_orders)
    : classes_(static_cast<int>(classes)),
      max_magnitude_(static_cast<int>(width) - 2),
      stride_(2 * width - 1),
      escape_orders_(escape_orders, escape_orders + classes) {
    if (classes < 1 || classes > static_cast<size_t>(kMaxClasses))
        throw std::invalid_argument("tables have " + std::to_string(classes) + " classes; expected 1 to 64");
    if (width < 2 || !is_alphabet(width - 2))
        throw std::invalid_argument("tables have " + std::to_string(width) + " entries; expected 9, 17, 33 or 65");
    for (size_t cls = 0; cls < classes; ++cls)
        if (escape_orders[cls] > kMaxEscapeOrder)
            throw std::invalid_argument("the escape order of class " + std::to_string(cls) + " is above 24");
    for (size_t table = 0; table < 2 * classes; ++table)
        check_table(frequencies + table * width, table, classes, width);
    cumulative_.resize(2 * classes * stride_);
    slots_.resize(2 * classes * kTotal);
    for (size_t table = 0; table < 2 * classes; ++table) add_table(table, frequencies + table * width);
}

void TableSet::add_table(size_t table, const uint16_t* frequencies) {
    uint16_t* cumulative = cumulative_.data() + table * stride_;
    Slot* slots = slots_.data() + table * kTotal;
    uint32_t sum = 0;
    for (int symbol = 0; symbol <= escape_symbol(); ++symbol) {
        const int magnitude = symbol == escape_symbol() ? max_magnitude_ + 1 : std::abs(symbol - max_magnitude_);
        const uint32_t frequency = frequencies[magnitude];
        cumulative[symbol] = static_cast<uint16_t>(sum);
        for (uint32_t bias = 0; bias < frequency; ++bias)
            slots[sum + bias].packed = frequency << 20 | bias << 8 | static_cast<uint32_t>(symbol);
        sum += frequency;
    }
    cumulative[escape_symbol() + 1] = static_cast<uint16_t>(sum);
}

void normalize_counts(const double* counts, size_t width, uint16_t* frequencies) {
    if (width < 2 || !is_alphabet(width - 2))
        throw std::invalid_argument("counts have " + std::to_string(width) + " entries; expected 9, 17, 33 or 65");
    double total = 0.0;
    for (size_t i = 0; i < width; ++i) {
        if (!(counts[i] >= 0.0)) throw std::invalid_argument("a count is negative or not a number");
        total += counts[i];
    }
    if (!std::isfinite(total)) throw std::invalid_argument("the sum of the counts is not finite");
    std::fill(frequencies, frequencies + width, uint16_t{0});
    if (total == 0.0) return;
    const Fit fit(counts, width);
    for (size_t i = 0; i < width; ++i) frequencies[i] = static_cast<uint16_t>(fit.frequencies()[i]);
}

}  // namespace trueaxis
