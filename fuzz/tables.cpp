// Fuzz target: side information, and the frequency tables that are made of it.
//
//   bytes ─▶ decode_integers ─▶ encode_integers ─▶ the same numbers;   numbers ─▶ TableSet, or refused
#include <stdexcept>

#include "input.hpp"
#include "side.hpp"
#include "table.hpp"

namespace trueaxis {
namespace {

void check_tables(const std::vector<int32_t>& numbers, int classes, int largest) {
    std::vector<uint16_t> frequencies(static_cast<size_t>(kQuantizers) * classes * (largest + 2));
    for (size_t n = 0; n < frequencies.size() && n < numbers.size(); ++n)
        frequencies[n] = static_cast<uint16_t>(numbers[n]);
    const std::vector<uint8_t> orders(classes, static_cast<uint8_t>(numbers.empty() ? 0 : numbers.back()));
    const TableSet tables(frequencies.data(), orders.data(), classes, largest);
    const uint32_t* lookup = tables.decoding_table();
    for (int q = 0; q < kQuantizers; ++q)
        for (int cls = 0; cls < classes; ++cls) {
            if (!tables.present(q, cls)) continue;
            for (uint32_t slot = 0; slot < kTotal; slot += 61) {
                const Symbol& symbol = tables.symbol(q, cls, tables.find(q, cls, slot));
                const uint32_t entry = lookup[static_cast<size_t>(q * classes + cls) * kTotal + slot];
                expect(symbol.start <= slot && slot < static_cast<uint32_t>(symbol.start) + symbol.frequency);
                expect((entry & (kTotal - 1)) == symbol.frequency &&
                       (entry >> 12 & (kTotal - 1)) == slot - symbol.start);
            }
        }
}

// Whatever was counted, its table is one that can be read.
void check_counts(const std::vector<int32_t>& numbers, int largest) {
    std::vector<uint64_t> counts(largest + 2);
    for (size_t n = 0; n < numbers.size(); ++n)
        counts[n % counts.size()] += static_cast<uint64_t>(numbers[n] < 0 ? -numbers[n] : numbers[n]);
    std::vector<uint16_t> frequencies(static_cast<size_t>(kQuantizers) * counts.size());
    normalize_counts(counts.data(), largest, frequencies.data());
    const uint8_t order = 0;
    const TableSet tables(frequencies.data(), &order, 1, largest);
    for (int m = 0; m <= largest + 1; ++m) expect(counts[m] == 0 || tables.symbol(0, 0, largest + m).frequency > 0);
}

void run(Input input) {
    constexpr int alphabets[] = {7, 15, 31, 63};
    const int largest = alphabets[input.upto(3)];
    const int classes = 1 + input.upto(3);
    const size_t count = input.byte();
    const size_t run_length = 1 + static_cast<size_t>(input.upto(127));  // contexts change after so many
    std::vector<uint8_t> contexts(count);
    for (size_t n = 0; n < count; ++n) contexts[n] = static_cast<uint8_t>(n / run_length);
    std::vector<int32_t> numbers(count);
    std::vector<uint8_t> data = input.rest();
    decode_integers(data.data(), data.size(), contexts.data(), count, numbers.data());

    const std::vector<uint8_t> again = encode_integers(numbers.data(), contexts.data(), count);
    std::vector<int32_t> same(count);
    decode_integers(again.data(), again.size(), contexts.data(), count, same.data());
    expect(same == numbers);
    check_counts(numbers, largest);
    check_tables(numbers, classes, largest);
}

}  // namespace
}  // namespace trueaxis

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        trueaxis::run(trueaxis::Input(data, size));
    } catch (const std::invalid_argument&) {  // refused, as it should be
    }
    return 0;
}
