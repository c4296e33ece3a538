// Python bindings of the core, trueaxis._core: arrays and their lengths are checked here, the work is done elsewhere.
//
// Every array must have the dtype named in _core.pyi and be C-contiguous (TypeError otherwise); lengths that do not fit
// and damaged bytes are ValueError. The interpreter's lock is released while the core works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "rans.hpp"
#include "side.hpp"
#include "table.hpp"
#include "trellis.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace trueaxis {
namespace {

template <typename T, size_t Dimensions>
using Input = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
template <typename T, size_t Dimensions>
using Output = nb::ndarray<nb::numpy, T, nb::ndim<Dimensions>>;

using Codes = Input<int32_t, 1>;
using IndexedSegment = std::tuple<Input<int32_t, 2>, Codes, Codes, int, int>;
using SegmentDescription = std::tuple<Codes, Codes, int, int>;

void check_length(const char* name, size_t found, size_t expected) {
    if (found != expected)
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) + " entries; expected " +
                                    std::to_string(expected));
}

// A NumPy array that owns `data`.
template <typename T, size_t Dimensions>
Output<T, Dimensions> to_numpy(std::unique_ptr<T[]> data, const size_t (&shape)[Dimensions]) {
    T* pointer = data.get();
    nb::capsule owner(pointer, [](void* memory) noexcept { delete[] static_cast<T*>(memory); });
    data.release();
    return Output<T, Dimensions>(pointer, Dimensions, shape, owner);
}

std::span<const uint8_t> to_span(const nb::bytes& bytes) {
    return {static_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

nb::bytes to_bytes(const std::vector<uint8_t>& bytes) { return nb::bytes(bytes.data(), bytes.size()); }

Segment to_segment(const int32_t* indices, const Codes& row_codes, const Codes& column_codes, int shift, int trellis) {
    if (shift < 0 || shift > kLargestShift)
        throw std::invalid_argument("shift is " + std::to_string(shift) + "; expected 0 to 31");
    return {indices, row_codes.data(),   column_codes.data(), row_codes.size(), column_codes.size(),
            shift,   trellis_of(trellis)};
}

Segment to_segment(const Input<int32_t, 2>& indices, const Codes& row_codes, const Codes& column_codes, int shift,
                   int trellis) {
    check_length("row_codes", row_codes.size(), indices.shape(1));
    check_length("column_codes", column_codes.size(), indices.shape(0));
    return to_segment(indices.data(), row_codes, column_codes, shift, trellis);
}

std::vector<Segment> to_segments(const std::vector<IndexedSegment>& tuples) {
    std::vector<Segment> segments;
    for (const auto& [indices, row_codes, column_codes, shift, trellis] : tuples)
        segments.push_back(to_segment(indices, row_codes, column_codes, shift, trellis));
    return segments;
}

std::vector<Segment> to_segments(const std::vector<SegmentDescription>& tuples) {
    std::vector<Segment> segments;
    for (const auto& [row_codes, column_codes, shift, trellis] : tuples)
        segments.push_back(to_segment(nullptr, row_codes, column_codes, shift, trellis));
    return segments;
}

void make_tables(TableSet* self, const Input<uint16_t, 3>& frequencies, const Input<uint8_t, 1>& escape_orders) {
    check_length("frequencies", frequencies.shape(0), 2);
    check_length("escape_orders", escape_orders.size(), frequencies.shape(1));
    new (self) TableSet(frequencies.data(), frequencies.shape(1), frequencies.shape(2), escape_orders.data());
}

template <typename T>
Output<uint16_t, 2> normalize(const Input<T, 2>& counts) {
    const size_t tables = counts.shape(0);
    const size_t width = counts.shape(1);
    auto frequencies = std::make_unique<uint16_t[]>(tables * width);
    {
        nb::gil_scoped_release release;
        std::vector<double> row(width);
        for (size_t table = 0; table < tables; ++table) {
            for (size_t i = 0; i < width; ++i) row[i] = static_cast<double>(counts.data()[table * width + i]);
            normalize_counts(row.data(), width, frequencies.get() + table * width);
        }
    }
    return to_numpy<uint16_t, 2>(std::move(frequencies), {tables, width});
}

Output<uint64_t, 3> count(std::pair<int, int> tables_shape, const std::vector<IndexedSegment>& tuples) {
    const auto [classes, max_magnitude] = tables_shape;
    if (classes < 1 || classes > kMaxClasses || max_magnitude < 1 || !is_alphabet(static_cast<size_t>(max_magnitude)))
        throw std::invalid_argument("tables_shape is (" + std::to_string(classes) + ", " +
                                    std::to_string(max_magnitude) + "); expected 1 to 64 classes, 7, 15, 31 or 63");
    const std::vector<Segment> segments = to_segments(tuples);
    const auto width = static_cast<size_t>(max_magnitude) + 2;
    auto counts = std::make_unique<uint64_t[]>(2 * static_cast<size_t>(classes) * width);
    {
        nb::gil_scoped_release release;
        count_symbols(segments, classes, max_magnitude, counts.get());
    }
    return to_numpy<uint64_t, 3>(std::move(counts), {2, static_cast<size_t>(classes), width});
}

double ideal_bits(const TableSet& tables, const std::vector<IndexedSegment>& tuples) {
    const std::vector<Segment> segments = to_segments(tuples);
    nb::gil_scoped_release release;
    return stream_bits(tables, segments);
}

std::pair<nb::bytes, nb::bytes> encode(const TableSet& tables, const std::vector<IndexedSegment>& tuples, int lanes) {
    const std::vector<Segment> segments = to_segments(tuples);
    CodedStream coded;
    {
        nb::gil_scoped_release release;
        coded = encode_stream(tables, segments, lanes);
    }
    return {to_bytes(coded.stream), to_bytes(coded.escapes)};
}

nb::list decode(const TableSet& tables, const nb::bytes& stream, const nb::bytes& escapes,
                const std::vector<SegmentDescription>& tuples, int lanes) {
    const std::vector<Segment> segments = to_segments(tuples);
    const std::span<const uint8_t> stream_span = to_span(stream);
    const std::span<const uint8_t> escape_span = to_span(escapes);
    std::vector<std::unique_ptr<int32_t[]>> arrays;
    {
        nb::gil_scoped_release release;
        check_capacity(stream_span.size(), segments);
        std::vector<int32_t*> outputs;
        for (const Segment& segment : segments) {
            arrays.emplace_back(new int32_t[segment.columns * segment.rows]);
            outputs.push_back(arrays.back().get());
        }
        decode_stream(tables, stream_span, escape_span, segments, outputs, lanes);
    }
    nb::list matrices;
    for (size_t i = 0; i < segments.size(); ++i)
        matrices.append(to_numpy<int32_t, 2>(std::move(arrays[i]), {segments[i].columns, segments[i].rows}));
    return matrices;
}

Output<float, 2> reconstruct_values(const Input<int32_t, 2>& indices, const Codes& row_codes, const Codes& column_codes,
                                    int shift, int trellis, const Input<int8_t, 3>& offsets,
                                    const Input<float, 1>& column_steps, const Input<float, 2>& row_steps,
                                    const Codes& column_groups) {
    const Segment segment = to_segment(indices, row_codes, column_codes, shift, trellis);
    check_length("offsets", offsets.shape(0), 2);
    check_length("the last axis of offsets", offsets.shape(2), 2);
    if (offsets.shape(1) < 1 || offsets.shape(1) > static_cast<size_t>(kMaxClasses))
        throw std::invalid_argument("offsets have " + std::to_string(offsets.shape(1)) + " classes; expected 1 to 64");
    check_length("column_steps", column_steps.size(), segment.columns);
    check_length("row_steps", row_steps.shape(0), segment.rows);
    check_length("column_groups", column_groups.size(), segment.columns);
    const Reconstruction grid{offsets.data(),       static_cast<int>(offsets.shape(1)),
                              column_steps.data(),  row_steps.data(),
                              column_groups.data(), row_steps.shape(1)};
    std::unique_ptr<float[]> values;
    {
        nb::gil_scoped_release release;
        values.reset(new float[segment.columns * segment.rows]);
        reconstruct(segment, grid, values.get());
    }
    return to_numpy<float, 2>(std::move(values), {segment.columns, segment.rows});
}

nb::bytes encode_side(const Codes& values, const Input<uint8_t, 1>& contexts) {
    check_length("contexts", contexts.size(), values.size());
    std::vector<uint8_t> bytes;
    {
        nb::gil_scoped_release release;
        bytes = encode_integers({values.data(), values.size()}, {contexts.data(), contexts.size()});
    }
    return to_bytes(bytes);
}

Output<int32_t, 1> decode_side(const nb::bytes& coded, const Input<uint8_t, 1>& contexts) {
    const std::span<const uint8_t> bytes = to_span(coded);
    std::unique_ptr<int32_t[]> values;
    {
        nb::gil_scoped_release release;
        values.reset(new int32_t[contexts.size()]);
        decode_integers(bytes, {contexts.data(), contexts.size()}, values.get());
    }
    return to_numpy<int32_t, 1>(std::move(values), {contexts.size()});
}

}  // namespace
}  // namespace trueaxis

NB_MODULE(_core, module) {
    using namespace trueaxis;
    module.doc() = "Entropy coder of trueaxis: tables, interleaved rANS, trellis, side information.";
    nb::class_<TableSet>(module, "TableSet", "Frequency tables of a model, checked.")
        .def("__init__", &make_tables, "frequencies"_a.noconvert(), "escape_orders"_a.noconvert())
        .def_prop_ro("classes", &TableSet::classes)
        .def_prop_ro("max_magnitude", &TableSet::max_magnitude);
    module.def("normalize_counts", &normalize<double>, "counts"_a.noconvert(), "Counts to 12-bit frequencies.");
    module.def("normalize_counts", &normalize<uint64_t>, "counts"_a.noconvert());
    module.def("count_symbols", &count, "tables_shape"_a, "segments"_a.noconvert(), "Counts of |k| per table.");
    module.def("stream_bits", &ideal_bits, "tables"_a, "segments"_a.noconvert(), "Ideal code length in bits.");
    module.def("encode_stream", &encode, "tables"_a, "segments"_a.noconvert(), "lanes"_a, "Indices to bytes.");
    module.def("decode_stream", &decode, "tables"_a, "stream"_a, "escapes"_a, "segments"_a.noconvert(), "lanes"_a,
               "Bytes to indices.");
    module.def("reconstruct", &reconstruct_values, "indices"_a.noconvert(), "row_codes"_a.noconvert(),
               "column_codes"_a.noconvert(), "shift"_a, "trellis"_a, "offsets"_a.noconvert(),
               "column_steps"_a.noconvert(), "row_steps"_a.noconvert(), "column_groups"_a.noconvert(),
               "Indices to float32 values.");
    module.def("encode_integers", &encode_side, "values"_a.noconvert(), "contexts"_a.noconvert(),
               "Side information to bytes.");
    module.def("decode_integers", &decode_side, "coded"_a, "contexts"_a.noconvert(), "Bytes to side information.");
}
