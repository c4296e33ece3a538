// Python bindings: shapes are checked here, the interpreter lock is released, algorithms live elsewhere.
#include "module.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "feedback.hpp"
#include "isa.hpp"
#include "rans.hpp"
#include "side.hpp"
#include "table.hpp"
#include "trellis.hpp"
#include "viterbi.hpp"

using namespace nb::literals;

namespace trueaxis {
namespace {

using CodedSegment = std::tuple<In<int32_t, 2>, In<int32_t, 1>, In<int32_t, 1>, int, int>;
using DescribedSegment = std::tuple<In<int32_t, 1>, In<int32_t, 1>, int, int>;

Segment describe(const In<int32_t, 1>& row_codes, const In<int32_t, 1>& column_codes, int shift, int trellis) {
    require(shift >= 0 && shift <= 31, "segment: shift is not 0 to 31");
    return {column_codes.shape(0), row_codes.shape(0), row_codes.data(), column_codes.data(), shift, trellis};
}

void split(const std::vector<CodedSegment>& coded, std::vector<Segment>& segments,
           std::vector<const int32_t*>& indices) {
    for (const auto& [k, row_codes, column_codes, shift, trellis] : coded) {
        segments.push_back(describe(row_codes, column_codes, shift, trellis));
        require(k.shape(0) == segments.back().columns && k.shape(1) == segments.back().rows,
                "segment: indices are not [columns, rows] of its codes");
        indices.push_back(k.data());
    }
}

nb::bytes to_bytes(const std::vector<uint8_t>& data) { return nb::bytes(data.data(), data.size()); }

void bind_tables(nb::module_& m) {
    nb::class_<TableSet>(m, "TableSet")
        .def("__init__",
             [](TableSet* self, In<uint16_t, 3> frequencies, In<uint8_t, 1> escape_orders) {
                 require(frequencies.shape(0) == kQuantizers && frequencies.shape(1) >= 1 &&
                             frequencies.shape(1) <= 64 && frequencies.shape(2) >= 3 && frequencies.shape(2) <= 65 &&
                             escape_orders.shape(0) == frequencies.shape(1),
                         "tables: expected frequencies [2, classes, K + 2] and orders [classes]");
                 new (self) TableSet(frequencies.data(), escape_orders.data(), static_cast<int>(frequencies.shape(1)),
                                     static_cast<int>(frequencies.shape(2)) - 2);
             })
        .def_prop_ro("classes", &TableSet::classes)
        .def_prop_ro("largest_magnitude", &TableSet::max_magnitude);

    m.def("normalize_counts", [](In<uint64_t, 2> counts) {
        require(counts.shape(1) >= 3, "counts: expected [tables, K + 2]");
        auto frequencies = allocate<uint16_t, 2>({counts.shape(0), counts.shape(1)});
        const int largest = static_cast<int>(counts.shape(1)) - 2;
        for (size_t t = 0; t < counts.shape(0); ++t)
            normalize_counts(counts.data() + t * counts.shape(1), largest, frequencies.data() + t * counts.shape(1));
        return frequencies;
    });
}

void bind_streams(nb::module_& m) {
    m.def("count_symbols", [](int classes, int largest, const std::vector<CodedSegment>& coded) {
        require(classes >= 1 && classes <= 64 && largest >= 1, "count_symbols: bad number of classes or alphabet");
        std::vector<Segment> segments;
        std::vector<const int32_t*> indices;
        split(coded, segments, indices);
        auto counts =
            allocate<uint64_t, 3>({kQuantizers, static_cast<size_t>(classes), static_cast<size_t>(largest) + 2});
        const nb::gil_scoped_release release;
        for (size_t s = 0; s < segments.size(); ++s)
            count_symbols(segments[s], indices[s], classes, largest, counts.data());
        return counts;
    });
    m.def("table_numbers", [](int classes, const CodedSegment& coded) {
        require(classes >= 1 && classes <= 64, "table_numbers: bad number of classes");
        std::vector<Segment> segments;
        std::vector<const int32_t*> indices;
        split({coded}, segments, indices);
        auto numbers = allocate<uint8_t, 2>({segments[0].columns, segments[0].rows});
        const nb::gil_scoped_release release;
        table_numbers(segments[0], indices[0], classes, numbers.data());
        return numbers;
    });
    m.def("stream_bits", [](const TableSet& tables, const std::vector<CodedSegment>& coded) {
        std::vector<Segment> segments;
        std::vector<const int32_t*> indices;
        split(coded, segments, indices);
        const nb::gil_scoped_release release;
        double bits = 0.0;
        for (size_t s = 0; s < segments.size(); ++s) bits += stream_bits(tables, segments[s], indices[s]);
        return bits;
    });
    m.def("encode_stream", [](const TableSet& tables, const std::vector<CodedSegment>& coded, int lanes) {
        std::vector<Segment> segments;
        std::vector<const int32_t*> indices;
        split(coded, segments, indices);
        Coded result;
        {
            const nb::gil_scoped_release release;
            result = encode_stream(tables, segments, indices, lanes);
        }
        return std::make_pair(to_bytes(result.stream), to_bytes(result.escapes));
    });
    m.def("decode_stream", [](const TableSet& tables, const nb::bytes& stream, const nb::bytes& escapes,
                              const std::vector<DescribedSegment>& described, int lanes) {
        std::vector<Segment> segments;
        std::vector<Out<int32_t, 2>> decoded;
        std::vector<int32_t*> indices;
        for (const auto& [row_codes, column_codes, shift, trellis] : described) {
            segments.push_back(describe(row_codes, column_codes, shift, trellis));
            decoded.push_back(allocate<int32_t, 2>({segments.back().columns, segments.back().rows}));
            indices.push_back(decoded.back().data());
        }
        const uint8_t* stream_data = data_of(stream);
        const uint8_t* escape_data = data_of(escapes);
        const size_t stream_size = stream.size();
        const size_t escape_size = escapes.size();
        const nb::gil_scoped_release release;
        decode_stream(tables, stream_data, stream_size, escape_data, escape_size, segments, indices, lanes);
        return decoded;
    });
    m.def("reconstruct",
          [](In<int32_t, 2> k, In<int32_t, 1> row_codes, In<int32_t, 1> column_codes, int shift, int trellis,
             In<int8_t, 3> offsets, In<float, 1> column_steps, In<float, 2> row_steps, In<int32_t, 1> groups) {
              const Segment segment = describe(row_codes, column_codes, shift, trellis);
              require(k.shape(0) == segment.columns && k.shape(1) == segment.rows &&
                          column_steps.shape(0) == segment.columns && row_steps.shape(0) == segment.rows &&
                          groups.shape(0) == segment.columns,
                      "reconstruct: steps do not fit the indices");
              require(offsets.shape(0) == kQuantizers && offsets.shape(1) >= 1 && offsets.shape(2) == 2,
                      "reconstruct: offsets are not [2, classes, 2]");
              for (size_t j = 0; j < segment.columns; ++j)
                  require(groups.data()[j] >= 0 && static_cast<size_t>(groups.data()[j]) < row_steps.shape(1),
                          "reconstruct: a group is out of range");
              auto values = allocate<float, 2>({segment.columns, segment.rows});
              const Steps steps{offsets.data(),      static_cast<int>(offsets.shape(1)),
                                column_steps.data(), row_steps.data(),
                                groups.data(),       row_steps.shape(1)};
              const nb::gil_scoped_release release;
              reconstruct(segment, k.data(), steps, values.data());
              return values;
          });
}

void bind_side(nb::module_& m) {
    m.def("encode_integers", [](In<int32_t, 1> values, In<uint8_t, 1> contexts) {
        require(values.shape(0) == contexts.shape(0), "encode_integers: one context per value");
        return to_bytes(encode_integers(values.data(), contexts.data(), values.shape(0)));
    });
    m.def("decode_integers", [](const nb::bytes& data, In<uint8_t, 1> contexts) {
        auto values = allocate<int32_t, 1>({contexts.shape(0)});
        decode_integers(data_of(data), data.size(), contexts.data(), contexts.shape(0), values.data());
        return values;
    });
}

RoundingModel rounding_model(const In<float, 3>& bits, const In<float, 3>& offsets, const In<uint8_t, 1>& orders,
                             float lambda, int trellis) {
    const size_t classes = bits.shape(1);
    require(bits.shape(0) == kQuantizers && classes >= 1 && classes <= 64 && bits.shape(2) >= 3 &&
                offsets.shape(0) == kQuantizers && offsets.shape(1) == classes && offsets.shape(2) == 2 &&
                orders.shape(0) == classes,
            "rounding: expected bits [2, classes, K + 2], offsets [2, classes, 2], orders [classes]");
    return {bits.data(), offsets.data(), orders.data(), static_cast<int>(classes), static_cast<int>(bits.shape(2)) - 2,
            lambda,      trellis};
}

void bind_feedback(nb::module_& m) {
    m.def(
        "quantize_block",
        [](In<float, 2> weights, InOut<float, 2> targets, std::optional<In<float, 2>> factor, In<float, 1> column_steps,
           In<float, 2> row_steps, In<int32_t, 1> groups, In<int32_t, 1> row_codes, int shift, int codes_per_octave,
           int zero_code, In<float, 3> bits, In<float, 3> offsets, In<uint8_t, 1> escape_orders, float lambda,
           int trellis, InOut<double, 3> sums, InOut<double, 3> counts) {
            const size_t columns = weights.shape(0);
            const size_t rows = weights.shape(1);
            const size_t classes = bits.shape(1);
            require(targets.shape(0) == columns && targets.shape(1) == rows && column_steps.shape(0) == columns &&
                        groups.shape(0) == columns && row_steps.shape(0) == rows && row_codes.shape(0) == rows,
                    "quantize_block: shapes differ");
            require(!factor || (factor->shape(0) == columns && factor->shape(1) == columns),
                    "quantize_block: factor is not [columns, columns]");
            require(sums.shape(0) == 2 && sums.shape(1) == classes && sums.shape(2) == 2 && counts.shape(0) == 2 &&
                        counts.shape(1) == classes && counts.shape(2) == 2,
                    "quantize_block: residuals are not [2, classes, 2]");
            for (size_t j = 0; j < columns; ++j)
                require(groups.data()[j] >= 0 && static_cast<size_t>(groups.data()[j]) < row_steps.shape(1),
                        "quantize_block: a group is out of range");
            auto indices = allocate<int32_t, 2>({columns, rows});
            auto errors = allocate<float, 2>({columns, rows});
            auto codes = allocate<int32_t, 1>({columns});
            const RoundingModel model = rounding_model(bits, offsets, escape_orders, lambda, trellis);
            const FeedbackBlock block{columns,
                                      rows,
                                      weights.data(),
                                      targets.data(),
                                      factor ? factor->data() : nullptr,
                                      column_steps.data(),
                                      row_steps.data(),
                                      groups.data(),
                                      row_steps.shape(1),
                                      row_codes.data(),
                                      shift,
                                      codes_per_octave,
                                      zero_code,
                                      indices.data(),
                                      errors.data(),
                                      codes.data(),
                                      sums.data(),
                                      counts.data()};
            {
                const nb::gil_scoped_release release;
                quantize_block(model, block);
            }
            return std::make_tuple(indices, errors, codes);
        },
        "weights"_a, "targets"_a, "factor"_a.none(), "column_steps"_a, "row_steps"_a, "groups"_a, "row_codes"_a,
        "shift"_a, "codes_per_octave"_a, "zero_code"_a, "bits"_a, "offsets"_a, "escape_orders"_a, "rate_weight"_a,
        "trellis"_a, "residual_sums"_a, "residual_counts"_a);
    m.def("viterbi", [](In<float, 2> targets, In<uint8_t, 2> classes, In<float, 3> bits, In<float, 3> offsets,
                        In<uint8_t, 1> escape_orders, float lambda, int trellis) {
        const Rounding rounding(rounding_model(bits, offsets, escape_orders, lambda, trellis));
        const size_t rows = targets.shape(1);
        require(classes.shape(0) == targets.shape(0) && classes.shape(1) == rows, "viterbi: one class per target");
        for (size_t i = 0; i < classes.size(); ++i)
            require(classes.data()[i] < rounding.classes(), "viterbi: a class is out of range");
        auto indices = allocate<int32_t, 2>({targets.shape(0), rows});
        const nb::gil_scoped_release release;
        Column column(rows, rounding.states());
        for (size_t j = 0; j < targets.shape(0); ++j) {
            std::copy_n(targets.data() + j * rows, rows, column.targets.begin());
            std::copy_n(classes.data() + j * rows, rows, column.classes.begin());
            search_path(rounding, column);
            for (size_t i = 0; i < rows; ++i) {
                const float x = column.targets[i];
                const int magnitude = magnitude_of(std::fabs(x), column.branches[i], column.choices[i]);
                indices.data()[j * rows + i] = x < 0.0F ? -magnitude : magnitude;
            }
        }
        return indices;
    });
}

void bind_instruction_sets(nb::module_& m) {
    m.def("instruction_sets", &instruction_sets);
    m.def("use_instruction_set", &use_instruction_set);
    use_environment();
}

}  // namespace
}  // namespace trueaxis

NB_MODULE(_core, m) {
    // What a traceback or a cache still holds when the interpreter ends is no leak.
    nanobind::set_leak_warnings(false);
    m.doc() = "C++ core of trueaxis: tables, rANS, trellis, side information, noise feedback.";
    trueaxis::bind_tables(m);
    trueaxis::bind_streams(m);
    trueaxis::bind_decoding(m);
    trueaxis::bind_planes(m);
    trueaxis::bind_side(m);
    trueaxis::bind_feedback(m);
    trueaxis::bind_instruction_sets(m);
}
