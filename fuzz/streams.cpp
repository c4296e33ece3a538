// Fuzz target: rANS streams with their escapes, read by the plain decoder and by the fused one on every instruction
// set.
//
//   tables, codes, and bytes (any, or coded ones with a little damage) ─▶ decode_stream ─▶ encode_stream ─▶ same bytes
//                                                                    └─▶ decode_values ─▶ the values of those indices
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "decode.hpp"
#include "input.hpp"
#include "isa.hpp"
#include "rans.hpp"

namespace trueaxis {
namespace {

// One matrix of a stream, and all that its decoding needs.
struct Matrix {
    size_t rows, columns;
    int shift, trellis;
    std::vector<int32_t> row_codes, column_codes, groups;
    std::vector<float> row_steps, column_steps;
    std::vector<int8_t> offsets;

    Segment segment() const { return {columns, rows, row_codes.data(), column_codes.data(), shift, trellis}; }
    Steps steps(int classes) const {
        return {offsets.data(), classes, column_steps.data(), row_steps.data(), groups.data(), 1};
    }
};

int32_t code_of_byte(uint8_t byte, int wild) {
    constexpr int32_t most = 1 << 30;
    if (byte == 255 && wild) return most - 1;
    if (byte == 254 && wild) return -most;
    return static_cast<int8_t>(byte) / 4;
}

Matrix take_matrix(Input& input, int classes) {
    Matrix matrix{};
    matrix.rows = input.upto(20);
    matrix.columns = input.upto(40);
    matrix.shift = input.upto(31) / 4;
    matrix.trellis = input.upto(kCodeCount);  // one beyond those that there are
    const int wild = input.upto(1);
    for (size_t i = 0; i < matrix.rows; ++i) matrix.row_codes.push_back(code_of_byte(input.byte(), wild));
    const uint8_t first = input.byte();
    for (size_t j = 0; j < matrix.columns; ++j)
        matrix.column_codes.push_back(code_of_byte(static_cast<uint8_t>(j % 3 == 0 ? first : first / 2), wild));
    matrix.groups.assign(matrix.columns, 0);
    matrix.row_steps.assign(matrix.rows, std::ldexp(1.0F, input.upto(255) - 127));
    matrix.column_steps.assign(matrix.columns, 0.75F);
    matrix.offsets.assign(static_cast<size_t>(kQuantizers) * classes * 2, static_cast<int8_t>(input.byte()));
    return matrix;
}

TableSet take_tables(Input& input, int classes, int largest) {
    std::vector<uint16_t> frequencies;
    for (int t = 0; t < kQuantizers * classes; ++t) {
        const int spread = input.upto(largest + 2);  // 0 leaves the table out
        const size_t first = frequencies.size();
        frequencies.resize(first + largest + 2);
        uint32_t left = spread > 0 ? kTotal : 0;
        for (int m = 1; m < spread; ++m) {
            const uint32_t share = 1 + input.byte() % 16;
            frequencies[first + m] = static_cast<uint16_t>(share);
            left -= 2 * share;
        }
        if (spread > 0) --left, frequencies[first + largest + 1] += 1;
        frequencies[first] = static_cast<uint16_t>(left);
    }
    std::vector<uint8_t> orders(classes);
    for (uint8_t& order : orders) order = static_cast<uint8_t>(input.upto(kLargestOrder));
    return {frequencies.data(), orders.data(), classes, largest};
}

// Indices of what the tables can hold, mostly.
std::vector<int32_t> take_indices(Input& input, const Matrix& matrix, int largest) {
    std::vector<int32_t> indices(matrix.rows * matrix.columns);
    const uint32_t seed = input.word();
    for (size_t n = 0; n < indices.size(); ++n) {
        const uint32_t mixed = (static_cast<uint32_t>(n) + 1) * 2654435761U ^ seed;
        indices[n] = static_cast<int32_t>(mixed >> 8) % 5 - 2;
        if (mixed % 61 == 0) indices[n] = static_cast<int32_t>(mixed >> 4 & 0xFFFF) - largest;
    }
    return indices;
}

using Tiles = std::vector<std::vector<uint8_t>>;

// Tiles of every matrix in a format, or nothing where the stream is refused.
bool decode_tiles(const TableSet& tables, const Coded& coded, const std::vector<Matrix>& matrices, int lanes,
                  Format format, Tiles& tiles) {
    ValueStream stream{coded.stream.data(), coded.stream.size(), coded.escapes.data(), coded.escapes.size(), {}, lanes};
    tiles.clear();
    for (const Matrix& matrix : matrices) {
        const size_t padded = (matrix.columns + lanes - 1) / lanes * lanes;
        tiles.emplace_back(padded * matrix.rows * (format == Format::kFloat32 ? 4 : 2));
    }
    for (size_t s = 0; s < matrices.size(); ++s)
        stream.segments.push_back({matrices[s].segment(), matrices[s].steps(tables.classes()), tiles[s].data()});
    try {
        decode_values(tables, {stream, stream}, format, 1);  // twice the same, so that kernels for two strips run
    } catch (const std::invalid_argument&) {
        return false;
    }
    return true;
}

void check_tiles(const Matrix& matrix, const std::vector<int32_t>& indices, int classes, int lanes,
                 const std::vector<uint8_t>& tiles) {
    std::vector<float> values(indices.size());
    reconstruct(matrix.segment(), indices.data(), matrix.steps(classes), values.data());
    for (size_t j = 0; j < matrix.columns; ++j)
        for (size_t i = 0; i < matrix.rows; ++i) {
            float found;
            std::memcpy(&found, &tiles[((j / lanes * matrix.rows + i) * lanes + j % lanes) * 4], 4);
            expect(std::memcmp(&found, &values[j * matrix.rows + i], 4) == 0);
        }
}

void run(Input input) {
    constexpr int alphabets[] = {7, 15, 31, 63};
    const int largest = alphabets[input.upto(3)];
    const int classes = 1 + input.upto(1);
    const int lanes = 1 + input.upto(kMaxLanes - 1);
    const bool coded_first = input.upto(3) != 0;
    static const std::vector<std::string> sets = instruction_sets();
    use_instruction_set(sets[input.byte() % sets.size()]);
    const Format format = input.upto(3) != 0 ? Format::kFloat32 : Format::kBfloat16;
    const TableSet tables = take_tables(input, classes, largest);
    std::vector<Matrix> matrices;
    std::vector<Segment> segments;
    std::vector<std::vector<int32_t>> indices;
    for (int count = 1 + input.upto(1); count > 0; --count) matrices.push_back(take_matrix(input, classes));
    std::vector<const int32_t*> sources;
    std::vector<int32_t*> targets;
    for (const Matrix& matrix : matrices) {
        segments.push_back(matrix.segment());
        indices.push_back(take_indices(input, matrix, largest));
    }
    for (std::vector<int32_t>& one : indices) sources.push_back(one.data()), targets.push_back(one.data());
    Coded coded;
    if (coded_first) {
        coded = encode_stream(tables, segments, sources, lanes);
        damage(input, coded.stream);
        damage(input, coded.escapes);
    } else {
        coded.escapes = input.block(input.byte() % 32);
        coded.stream = input.rest();
    }
    bool good = true;
    try {
        decode_stream(tables, coded.stream.data(), coded.stream.size(), coded.escapes.data(), coded.escapes.size(),
                      segments, targets, lanes);
    } catch (const std::invalid_argument&) {
        good = false;
    }
    Tiles tiles;
    expect(decode_tiles(tables, coded, matrices, lanes, format, tiles) == good);
    for (size_t s = 0; good && format == Format::kFloat32 && s < matrices.size(); ++s)
        check_tiles(matrices[s], indices[s], classes, lanes, tiles[s]);
    if (!good) return;
    const Coded again = encode_stream(tables, segments, sources, lanes);
    expect(again.stream == coded.stream && again.escapes == coded.escapes);
}

}  // namespace
}  // namespace trueaxis

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        trueaxis::run(trueaxis::Input(data, size));
    } catch (const std::invalid_argument&) {  // an unknown trellis, or indices without a table
    }
    return 0;
}
