// Python bindings of planes of bits; see planes.hpp.
#include <algorithm>

#include "module.hpp"
#include "planes.hpp"

namespace trueaxis {
namespace {

// (bits, kind, with contexts, lanes, offset, data, escapes, frequencies [contexts, 256])
using PlaneTuple = std::tuple<int, int, bool, size_t, int, In<uint8_t, 1>, nb::bytes, In<uint16_t, 2>>;

bool known_lanes(size_t lanes) { return lanes >= 1 && lanes <= kPlaneLanes && (lanes & (lanes - 1)) == 0; }
// (row codes, column codes, contexts, top, shift, of the base)
using ContextsTuple = std::tuple<In<int16_t, 1>, In<int16_t, 1>, int, int, int, bool>;

Plane described(const PlaneTuple& tuple, size_t count, int contexts) {
    const auto& [bits, kind, with_contexts, lanes, offset, data, escapes, frequencies] = tuple;
    require(kind >= 0 && kind <= 2, "planes: a kind is not 0 to 2");
    require(bits >= 1 && bits <= 16 && offset >= 0 && offset < 1 << 16, "planes: bits or offset are out of range");
    Plane plane{bits,
                static_cast<PlaneKind>(kind),
                data.data(),
                data.size(),
                offset,
                data_of(escapes),
                escapes.size() / 2,
                with_contexts,
                lanes,
                {}};
    if (plane.kind == PlaneKind::kRaw) {
        require(bits == 1 || bits == 2 || bits == 4 || bits == 8, "planes: a raw plane is not of 1, 2, 4 or 8 bits");
        require(data.size() == (count * bits + 7) / 8, "planes: a raw plane does not fit its entries");
    }
    if (plane.kind == PlaneKind::kCoded) {
        require(escapes.size() % 2 == 0 && known_lanes(lanes), "planes: escapes or lanes are out of range");
        require(frequencies.shape(0) == static_cast<size_t>(with_contexts ? contexts : 1) &&
                    frequencies.shape(1) == kPlaneSymbols,
                "planes: frequencies are not [contexts, 256]");
        plane.lookup = plane_lookup(frequencies.data(), frequencies.shape(0));
    }
    return plane;
}

PlaneContexts described(const ContextsTuple& tuple, size_t count, int width, bool has_base) {
    const auto& [row_codes, column_codes, contexts, top, shift, of_base] = tuple;
    constexpr int16_t limit = 1 << 13;
    const auto outside = [](int16_t code) { return code > limit || code < -limit; };
    require(contexts >= 1 && contexts <= kMostPlaneContexts, "planes: contexts are not 1 to 64");
    require(shift >= 0 && shift < 8 * width, "planes: the shift of the base is out of range");
    require(!of_base || (has_base && shift >= 8 * width - 16), "planes: contexts of a base that is not there");
    require(of_base || contexts == 1 || (row_codes.size() * column_codes.size() == count && column_codes.size() > 0),
            "planes: codes are not those of all entries");
    require(std::none_of(row_codes.data(), row_codes.data() + row_codes.size(), outside) &&
                std::none_of(column_codes.data(), column_codes.data() + column_codes.size(), outside),
            "planes: a code is beyond 2^13");
    return {row_codes.data(), column_codes.data(), column_codes.size(), contexts, top, shift, of_base};
}

}  // namespace

void bind_planes(nb::module_& m) {
    m.def("encode_plane",
          [](In<uint8_t, 1> symbols, In<uint8_t, 1> contexts, In<uint16_t, 2> frequencies, size_t lanes) {
              require(known_lanes(lanes) && symbols.size() == contexts.size() && frequencies.shape(1) == kPlaneSymbols,
                      "encode_plane: expected a context per symbol and frequencies [contexts, 256]");
              std::vector<uint8_t> coded;
              {
                  const nb::gil_scoped_release release;
                  coded = encode_plane(symbols.data(), contexts.data(), symbols.size(), frequencies.data(),
                                       frequencies.shape(0), lanes);
              }
              return nb::bytes(coded.data(), coded.size());
          });
    m.def("decode_planes", [](size_t count, int width, int residue, const ContextsTuple& contexts,
                              const std::vector<PlaneTuple>& tuples, In<uint8_t, 1> base) {
        require(width == 1 || width == 2 || width == 4 || width == 8, "planes: entries are not of 1, 2, 4 or 8 bytes");
        require(residue >= 0 && residue <= 2, "planes: the residue is not 0 to 2");
        require(base.size() == (residue == 0 ? 0 : count * width), "planes: the base has another size");
        const PlaneContexts numbers = described(contexts, count, width, residue != 0);
        std::vector<Plane> planes;
        for (const PlaneTuple& tuple : tuples) planes.push_back(described(tuple, count, numbers.count));
        auto* data = static_cast<uint8_t*>(allocate_pages(count * width));
        nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
        const size_t shape[1] = {count * width};
        Out<uint8_t, 1> decoded(data, 1, shape, owner);
        const nb::gil_scoped_release release;
        decode_planes(planes, numbers, static_cast<Residue>(residue), width, count,
                      residue == 0 ? nullptr : base.data(), data);
        return decoded;
    });
}

}  // namespace trueaxis
