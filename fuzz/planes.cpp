// Fuzz target: records of planes of bits, on every instruction set.
//
//   planes (raw, or symbols through rANS; coded ones with a little damage, or any bytes) ─▶ decode_planes ─▶ entries
#include "planes.hpp"

#include <stdexcept>
#include <string>

#include "input.hpp"
#include "isa.hpp"

namespace trueaxis {
namespace {

// Bytes that planes point to.
struct Owned {
    std::vector<uint8_t> data, escapes;
    std::vector<uint16_t> frequencies;
};

std::vector<uint16_t> take_frequencies(Input& input, size_t contexts) {
    std::vector<uint16_t> frequencies(contexts * kPlaneSymbols);
    for (size_t c = 0; c < contexts; ++c) {
        uint16_t* row = &frequencies[c * kPlaneSymbols];
        uint32_t left = 4096;
        const int used = 1 + input.upto(7);
        for (int s = 0; s < used && left > 1; ++s) {
            const uint32_t share = s + 1 == used ? left - 1 : 1 + input.byte() % (left - 1);
            row[input.byte()] = static_cast<uint16_t>(share);  // twice the same symbol makes a table that is refused
            left -= share;
        }
        for (int s = 0; s < kPlaneSymbols && left > 0; ++s)
            if (row[s] == 0) row[s] = 1, --left;
    }
    return frequencies;
}

// Symbols that their contexts' tables have, coded, with some damage.
std::vector<uint8_t> take_coded(Input& input, const Owned& owned, size_t contexts, size_t count, size_t lanes) {
    std::vector<uint8_t> symbols(count);
    const uint8_t wanted = input.byte();
    for (size_t n = 0; n < count; ++n)
        for (int s = 0; s < kPlaneSymbols; ++s) {
            symbols[n] = static_cast<uint8_t>(wanted * (n % 5 + 1) + s);
            if (owned.frequencies[symbols[n]] > 0) break;
        }
    std::vector<uint8_t> coded = encode_plane(symbols.data(), std::vector<uint8_t>(count).data(), count,
                                              owned.frequencies.data(), contexts, lanes);
    damage(input, coded);
    return coded;
}

Plane take_plane(Input& input, int bits, size_t count, size_t contexts, Owned& owned) {
    Plane plane{};
    plane.bits = bits;
    plane.kind = static_cast<PlaneKind>(input.upto(2));
    plane.offset = input.byte();
    plane.lanes = size_t{1} << input.upto(6);
    if (plane.kind == PlaneKind::kRaw) {
        if (bits > 8 || (bits & (bits - 1)) != 0) throw std::invalid_argument("not a raw plane");
        owned.data = input.block((count * bits + 7) / 8);
        owned.data.resize((count * bits + 7) / 8);
    } else if (plane.kind == PlaneKind::kCoded) {
        plane.with_contexts = input.upto(1) != 0;
        const size_t tables = plane.with_contexts ? contexts : 1;
        owned.frequencies = take_frequencies(input, tables);
        plane.lookup = plane_lookup(owned.frequencies.data(), tables);
        owned.data =
            input.upto(3) != 0 ? take_coded(input, owned, tables, count, plane.lanes) : input.block(input.byte());
        owned.escapes = input.block(2 * static_cast<size_t>(input.upto(8)));
        owned.escapes.resize(owned.escapes.size() / 2 * 2);
    }
    plane.data = owned.data.data();
    plane.bytes = owned.data.size();
    plane.escapes = owned.escapes.data();
    plane.escape_count = owned.escapes.size() / 2;
    return plane;
}

void run(Input input) {
    const int width = 1 << input.upto(3);
    const auto residue = static_cast<Residue>(input.upto(2));
    const size_t columns = 1 + static_cast<size_t>(input.upto(30));
    const size_t rows = input.upto(8);
    const size_t count = rows * columns;
    PlaneContexts contexts{};
    contexts.count = 1 + input.upto(kMostPlaneContexts - 1);
    contexts.of_base = residue != Residue::kOwn && input.upto(1) != 0;
    contexts.shift = width == 1 ? input.upto(7) : 8 * width - 16 + input.upto(15);
    contexts.top = input.byte();
    std::vector<int16_t> row_codes(rows), column_codes(columns);
    for (int16_t& code : row_codes) code = static_cast<int16_t>(input.byte() - 64);
    for (int16_t& code : column_codes) code = static_cast<int16_t>(input.byte() == 255 ? -(1 << 13) : 1);
    contexts.row_codes = row_codes.data();
    contexts.column_codes = column_codes.data();
    contexts.columns = columns;
    std::vector<uint64_t> base(count);  // aligned for any width
    for (size_t i = 0; i < count * width / 8; ++i) base[i] = uint64_t{input.word()} << 32 | i;

    std::vector<Owned> owned(8 * width);
    std::vector<Plane> planes;
    for (int left = 8 * width; left > 0;) {
        const int bits = std::min(left, 1 + input.upto(15));
        planes.push_back(take_plane(input, bits, count, contexts.count, owned[planes.size()]));
        left -= bits;
    }
    std::vector<std::vector<uint64_t>> found;
    const uint8_t* of_base = residue == Residue::kOwn ? nullptr : reinterpret_cast<const uint8_t*>(base.data());
    for (const std::string& name : instruction_sets()) {
        use_instruction_set(name);
        std::vector<uint64_t> out((count * width + 7) / 8);
        try {
            decode_planes(planes, contexts, residue, width, count, of_base, reinterpret_cast<uint8_t*>(out.data()));
        } catch (const std::invalid_argument&) {
            out.assign(1, 0xBAD);
            out.resize(count + 2);  // no output has this length
        }
        found.push_back(out);
        expect(found.front() == found.back());
    }
}

}  // namespace
}  // namespace trueaxis

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        trueaxis::run(trueaxis::Input(data, size));
    } catch (const std::invalid_argument&) {  // tables, or symbols without a frequency
    }
    return 0;
}
