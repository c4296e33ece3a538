// Python bindings of the fused decoder; see decode.hpp.
#include <algorithm>
#include <memory>

#include "decode.hpp"
#include "module.hpp"

namespace trueaxis {
namespace {

// What decode_values is told of a matrix; everything about columns is in file order, but for places [n]: where column j
// of the matrix stands in that order.
struct DescribedMatrix {
    In<int32_t, 1> row_codes, column_codes;
    int shift, trellis;
    In<int8_t, 3> offsets;
    In<float, 1> column_steps;
    In<float, 2> row_steps;
    In<int32_t, 1> groups;
    In<uint32_t, 1> places;

    size_t rows() const { return row_codes.shape(0); }
    size_t columns() const { return column_codes.shape(0); }

    void check(int classes) const {
        constexpr int32_t limit = (1 << 30) - 1;  // so that two codes add up
        const auto outside = [](int32_t code) { return code > limit || code < -limit; };
        require(shift >= 0 && shift <= 31, "matrix: shift is not 0 to 31");
        require(
            static_cast<int>(offsets.shape(1)) == classes && offsets.shape(0) == kQuantizers && offsets.shape(2) == 2,
            "matrix: offsets are not [2, classes, 2]");
        require(column_steps.shape(0) == columns() && groups.shape(0) == columns() && places.shape(0) == columns() &&
                    row_steps.shape(0) == rows() && row_steps.shape(1) >= 1,
                "matrix: steps do not fit its codes");
        require(std::none_of(row_codes.data(), row_codes.data() + rows(), outside) &&
                    std::none_of(column_codes.data(), column_codes.data() + columns(), outside),
                "matrix: a scale code is beyond 2^30 - 1");
        for (size_t j = 0; j < columns(); ++j)
            require(groups.data()[j] >= 0 && static_cast<size_t>(groups.data()[j]) < row_steps.shape(1) &&
                        places.data()[j] < columns(),
                    "matrix: a group or place is out of range");
    }

    ValueSegment segment(size_t first, size_t count, void* tiles) const {
        const Segment part{count, rows(), row_codes.data(), column_codes.data() + first, shift, trellis};
        const Steps steps{offsets.data(),
                          static_cast<int>(offsets.shape(1)),
                          column_steps.data() + first,
                          row_steps.data(),
                          groups.data() + first,
                          row_steps.shape(1)};
        return {part, steps, tiles};
    }
};

using MatrixTuple = std::tuple<In<int32_t, 1>, In<int32_t, 1>, int, int, In<int8_t, 3>, In<float, 1>, In<float, 2>,
                               In<int32_t, 1>, In<uint32_t, 1>>;
// Words, escapes, and the columns that the stream holds: (matrix, first column, columns), first a multiple of the
// lanes.
using StreamTuple = std::tuple<nb::bytes, nb::bytes, std::vector<std::tuple<size_t, size_t, size_t>>>;

// The streams as the decoder takes them; tile(number, first) is where column `first` of a matrix begins.
template <typename Tile>
std::vector<ValueStream> value_streams(const std::vector<StreamTuple>& streams,
                                       const std::vector<DescribedMatrix>& matrices, int lanes, Tile tile) {
    std::vector<ValueStream> work;
    std::vector<size_t> missing;
    for (const DescribedMatrix& matrix : matrices) missing.push_back(matrix.columns());
    for (const auto& [words, escapes, parts] : streams) {
        work.push_back({data_of(words), words.size(), data_of(escapes), escapes.size(), {}, lanes});
        for (const auto& [number, first, count] : parts) {
            require(number < matrices.size() && count <= missing[number] && first % lanes == 0 &&
                        first <= matrices[number].columns() && count <= matrices[number].columns() - first,
                    "stream: a range of columns does not fit its matrix");
            missing[number] -= count;
            work.back().segments.push_back(matrices[number].segment(first, count, tile(number, first)));
        }
    }
    require(std::all_of(missing.begin(), missing.end(), [](size_t count) { return count == 0; }),
            "stream: columns of a matrix are missing");
    return work;
}

// Tiles of whatever this thread decodes, kept for the next call: fresh pages cost about as much as decoding into them.
class Tiles {
   public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { std::free(data_); }

    void* reserve(size_t bytes) {
        if (bytes > size_) {
            release(0);
            data_ = allocate_pages(bytes);
            size_ = bytes;
        }
        return data_;
    }
    // Forgets the memory if it is more than `most` bytes.
    void release(size_t most) {
        if (size_ <= most) return;
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
    }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};
constexpr size_t kMostKept = size_t{1} << 27;

template <typename T>
Out<T, 2> output(const DescribedMatrix& matrix, const std::vector<InOut<T, 2>>& given, size_t number) {
    const size_t shape[2] = {matrix.rows(), matrix.columns()};
    if (given.empty()) {
        auto* data = static_cast<T*>(allocate_pages(matrix.rows() * matrix.columns() * sizeof(T)));
        return Out<T, 2>(data, 2, shape, nb::capsule(data, [](void* p) noexcept { std::free(p); }));
    }
    require(number < given.size() && given[number].shape(0) == shape[0] && given[number].shape(1) == shape[1],
            "outputs: one per matrix, of its shape");
    return Out<T, 2>(given[number].data(), 2, shape, nb::cast(given[number]));
}

// Into the arrays given, or new ones where there are none.
template <typename T>
std::vector<Out<T, 2>> decode_matrices(const TableSet& tables, const std::vector<StreamTuple>& streams,
                                       const std::vector<MatrixTuple>& tuples, int lanes, int threads,
                                       const std::vector<InOut<T, 2>>& given) {
    constexpr Format format = sizeof(T) == 4 ? Format::kFloat32 : Format::kBfloat16;
    require(lanes >= 1 && lanes <= kMaxLanes, "stream: lanes are not 1 to 32");
    std::vector<DescribedMatrix> matrices;
    std::vector<size_t> starts;
    std::vector<Out<T, 2>> decoded;
    size_t entries = 0;
    for (const MatrixTuple& tuple : tuples) {
        matrices.push_back(std::make_from_tuple<DescribedMatrix>(tuple));
        const DescribedMatrix& matrix = matrices.back();
        matrix.check(tables.classes());
        starts.push_back(entries);
        entries += (matrix.columns() + lanes - 1) / lanes * lanes * matrix.rows();
        decoded.push_back(output(matrix, given, matrices.size() - 1));
    }
    thread_local Tiles kept;
    auto* tiles = static_cast<T*>(kept.reserve(entries * sizeof(T)));
    const std::vector<ValueStream> work = value_streams(streams, matrices, lanes, [&](size_t number, size_t first) {
        return tiles + starts[number] + first * matrices[number].rows();
    });
    const nb::gil_scoped_release release;
    decode_values(tables, work, format, threads);
    for (size_t number = 0; number < matrices.size(); ++number)
        untile(tiles + starts[number], matrices[number].rows(), matrices[number].columns(), lanes,
               matrices[number].places.data(), format, decoded[number].data(), threads);
    kept.release(kMostKept);
    return decoded;
}

}  // namespace

void bind_decoding(nb::module_& m) {
    // Decoding alone, of one matrix into bfloat16 tiles [strip, rows, lanes] that are there already.
    m.def("decode_tiles", [](const TableSet& tables, const std::vector<StreamTuple>& streams, const MatrixTuple& tuple,
                             int lanes, int threads, InOut<uint16_t, 1> tiles) {
        const std::vector<DescribedMatrix> matrices{std::make_from_tuple<DescribedMatrix>(tuple)};
        const DescribedMatrix& matrix = matrices.front();
        matrix.check(tables.classes());
        require(lanes >= 1 && lanes <= kMaxLanes, "stream: lanes are not 1 to 32");
        require(tiles.shape(0) == (matrix.columns() + lanes - 1) / lanes * lanes * matrix.rows(),
                "tiles: expected columns rounded up to lanes, times rows");
        const auto work = value_streams(streams, matrices, lanes,
                                        [&](size_t, size_t first) { return tiles.data() + first * matrix.rows(); });
        const nb::gil_scoped_release release;
        decode_values(tables, work, Format::kBfloat16, threads);
    });
    m.def("decode_float32", &decode_matrices<float>, nb::arg("tables"), nb::arg("streams"), nb::arg("matrices"),
          nb::arg("lanes"), nb::arg("threads"), nb::arg("outputs") = std::vector<InOut<float, 2>>());
    m.def("decode_bfloat16", &decode_matrices<uint16_t>, nb::arg("tables"), nb::arg("streams"), nb::arg("matrices"),
          nb::arg("lanes"), nb::arg("threads"), nb::arg("outputs") = std::vector<InOut<uint16_t, 2>>());
}

}  // namespace trueaxis
