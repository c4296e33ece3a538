// Where the lanes of a register of eight find their next words, for sets without an expanding load.
#pragma once

#include <array>
#include <cstdint>

namespace trueaxis {

constexpr int kPartLanes = 8;

// Entry m: for each lane the number of set bits of m below it, where its next word stands.
constexpr std::array<std::array<uint8_t, kPartLanes>, 256> word_places() {
    std::array<std::array<uint8_t, kPartLanes>, 256> places{};
    for (int mask = 0; mask < 256; ++mask)
        for (int l = 0, place = 0; l < kPartLanes; ++l) {
            places[mask][l] = static_cast<uint8_t>(place);
            place += mask >> l & 1;
        }
    return places;
}
constexpr auto kWordPlaces = word_places();

}  // namespace trueaxis
