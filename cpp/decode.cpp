// Fused decoding, portable kernel and driver; see decode.hpp.
#include "decode.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "decode_kernels.hpp"
#include "isa.hpp"

namespace trueaxis {

void throw_truncated() { throw std::invalid_argument("stream: truncated"); }

namespace {

float value_of(const int8_t* offsets, int classes, int quantizer, int cls, int32_t k) {
    if (k == 0) return 0.0F;
    const int32_t sign = k > 0 ? 1 : -1;
    const size_t cell = (static_cast<size_t>(quantizer) * classes + cls) * 2 + (k > 1 || k < -1 ? 1 : 0);
    const float offset = static_cast<float>(offsets[cell]) / 64.0F;
    return static_cast<float>(2 * k - quantizer * sign) + static_cast<float>(sign) * offset;
}

}  // namespace

Escape read_escape(const Shared& shared, Strip& strip, int quantizer, int32_t row_code, int lane) {
    const TableSet& tables = *shared.tables;
    const int cls = class_at(strip, row_code, lane, tables.classes());
    if (!tables.present(quantizer, cls)) throw std::invalid_argument("stream: a class without a table occurs");
    const int32_t k = strip.escapes->get(tables.max_magnitude(), tables.escape_order(cls));
    return {k, value_of(strip.offsets, tables.classes(), quantizer, cls, k)};
}

namespace {

constexpr size_t kReadAhead = 64;  // bytes that a kernel may read beyond the words

uint32_t load(const uint8_t* bytes, int count) {
    uint32_t value = 0;
    for (int b = 0; b < count; ++b) value |= uint32_t{bytes[b]} << (8 * b);
    return value;
}

template <Format kFormat>
void store(const float* values, int width, uint8_t* out) {
    if constexpr (kFormat == Format::kFloat32) {
        std::memcpy(out, values, 4 * static_cast<size_t>(width));
    } else {
        uint16_t rounded[kMaxLanes];
        for (int l = 0; l < kMaxLanes; ++l) rounded[l] = to_bfloat16(values[l]);
        std::memcpy(out, rounded, 2 * static_cast<size_t>(width));
    }
}

// One row; the loops over all lanes leave their vectorization to the compiler.
template <Format kFormat>
void decode_row(const Shared& shared, Strip& strip) {
    const int classes = shared.tables->classes();
    const int32_t row_code = *strip.row_codes;
    uint32_t tables[kMaxLanes];
    uint32_t entries[kMaxLanes] = {};
    int32_t k[kMaxLanes];
    float values[kMaxLanes];
    for (int l = 0; l < kMaxLanes; ++l)
        tables[l] = ((0U - (strip.trellis[l] & 1U)) & static_cast<uint32_t>(classes)) +
                    static_cast<uint32_t>(class_at(strip, row_code, l, classes));
    uint32_t states[kMaxLanes];
    for (int l = 0; l < strip.width; ++l) {
        const uint32_t x = strip.states[l];
        entries[l] = shared.lookup[tables[l] << kProbabilityBits | (x & (kTotal - 1))];
        states[l] = (entries[l] & 0xFFFU) * (x >> kProbabilityBits) + (entries[l] >> 12 & 0xFFFU);
    }
    const uint8_t* next = strip.next;
    for (int l = 0; l < strip.width; ++l) {
        const uint32_t low = states[l] < kStateFloor ? 1 : 0;
        strip.states[l] = states[l] << (16 * low) | (load(next, 2) & (0U - low));
        next += 2 * low;
    }
    strip.next = next;
    if (next > strip.end) throw_truncated();
    uint32_t escaped = 0;
    for (int l = 0; l < kMaxLanes; ++l) {
        k[l] = static_cast<int32_t>(entries[l]) >> 24;
        values[l] = strip.values[static_cast<int32_t>(tables[l] << kValueBits) + k[l] - kEscapeMark];
        escaped |= static_cast<uint32_t>(k[l] == kEscapeMark) << l;
    }
    for (uint32_t rest = escaped; rest != 0; rest &= rest - 1) {
        const int l = __builtin_ctz(rest);
        if (l >= strip.width) break;
        const Escape escape = read_escape(shared, strip, static_cast<int>(strip.trellis[l] & 1U), row_code, l);
        k[l] = escape.k;
        values[l] = escape.value;
    }
    for (int l = 0; l < kMaxLanes; ++l) {
        const uint32_t s = strip.trellis[l];
        strip.trellis[l] = (s >> 1) ^ ((0U - (static_cast<uint32_t>(k[l]) & 1U)) & strip.on_parity) ^
                           ((0U - (s & 1U)) & strip.on_state);
    }
    if (strip.group_count == 1) {
        const float row_step = *strip.row_steps;
        for (int l = 0; l < kMaxLanes; ++l) values[l] *= strip.steps[l] * row_step;
    } else {
        for (int l = 0; l < strip.width; ++l) values[l] *= strip.steps[l] * strip.row_steps[strip.groups[l]];
    }
    store<kFormat>(values, strip.width, strip.out);
    ++strip.row_codes;
    strip.row_steps += strip.group_count;
    strip.out += strip.row_bytes;
}

template <Format kFormat>
void decode_portable(const Shared& shared, Strip* const* strips, size_t rows) {
    for (size_t i = 0; i < rows; ++i) decode_row<kFormat>(shared, *strips[0]);
}

struct Kernels {
    DecodeKernel one;
    DecodeKernel two = nullptr;  // null where strips do not run side by side
    DecodeKernel narrow_one = nullptr;
    DecodeKernel narrow_two = nullptr;
};

Kernels kernels_for(Format format) {
#if defined(__x86_64__)
    const Isa isa = instruction_set();
    if (isa == Isa::kAvx512)
        return {decode_kernel_avx512(format, 1), decode_kernel_avx512(format, 2),
                decode_narrow_kernel_avx512(format, 1), decode_narrow_kernel_avx512(format, 2)};
    if (isa == Isa::kAvx2) return {decode_kernel_avx2(format)};
#endif
    return {format == Format::kFloat32 ? decode_portable<Format::kFloat32> : decode_portable<Format::kBfloat16>};
}

// Everything about values that depends on the offsets: they differ between matrices with and without centroids.
class Values {
   public:
    Values(const TableSet& tables, const int8_t* offsets) : tables_(tables), offsets_(offsets) {
        for (int q = 0; q < kQuantizers; ++q)
            for (int cls = 0; cls < tables.classes(); ++cls)
                for (int k = kEscapeMark; k < kEscapeMark + (1 << kValueBits); ++k)
                    plain_.push_back(value_of(offsets, tables.classes(), q, cls, k));
        narrow_.resize(tables.classes());
        for (int cls = 0; cls < tables.classes(); ++cls) is_narrow_[cls] = fill(cls);
    }

    const int8_t* offsets() const { return offsets_; }
    const float* plain() const { return plain_.data(); }

    // The narrow tables if 32 lanes share a scale code and every class between the row codes' extremes is narrow.
    const Narrow* narrow(const Strip& strip, const Segment& segment) const {
        if (segment.rows == 0 || strip.width < kMaxLanes) return nullptr;
        for (int l = 1; l < kMaxLanes; ++l)
            if (strip.codes[l] != strip.codes[0]) return nullptr;
        const auto [low, high] = std::minmax_element(segment.row_codes, segment.row_codes + segment.rows);
        const int last = class_at(strip, *high, 0, tables_.classes());
        for (int cls = class_at(strip, *low, 0, tables_.classes()); cls <= last; ++cls)
            if (!is_narrow_[cls]) return nullptr;
        return narrow_.data();
    }

   private:
    // Both tables of a class; false where some |k| above 15 has a probability.
    bool fill(int cls) {
        const int largest = tables_.max_magnitude();
        for (int q = 0; q < kQuantizers; ++q) {
            const bool present = tables_.present(q, cls);
            for (int k = kNarrowMagnitude + 1; present && k <= largest; ++k)
                if (tables_.symbol(q, cls, largest + k).frequency != 0) return false;
            for (int entry = 0; present && entry <= kNarrowEscape; ++entry) {
                const int k = entry - kNarrowMagnitude;
                const bool above = k > largest;  // takes the place of the escape, with no frequency
                const bool escape = above || entry == kNarrowEscape;
                const Symbol& symbol =
                    tables_.symbol(q, cls, escape ? tables_.escape_symbol() : std::max(k, -largest) + largest);
                const int at = q * (kNarrowEscape + 1) + entry;
                narrow_[cls].starts[at] = symbol.start;
                narrow_[cls].frequencies[at] = k < -largest || (above && entry != kNarrowEscape) ? 0 : symbol.frequency;
                narrow_[cls].values[at] = value_of(offsets_, tables_.classes(), q, cls, k);
            }
        }
        return true;
    }

    const TableSet& tables_;
    const int8_t* offsets_;
    std::vector<float> plain_;
    std::vector<Narrow> narrow_;
    bool is_narrow_[kMostClasses] = {};
};

using ValueSets = std::vector<std::unique_ptr<Values>>;

const Values& values_for(const ValueSets& sets, const int8_t* offsets) {
    return **std::find_if(sets.begin(), sets.end(), [&](const auto& set) { return set->offsets() == offsets; });
}

// A stream on its way through its strips.
class Runner {
   public:
    Runner(const ValueSets& sets, const ValueStream& stream, Format format)
        : stream_(stream),
          sets_(sets),
          value_bytes_(format == Format::kFloat32 ? 4 : 2),
          escapes_(stream.escapes, stream.escape_bytes) {
        const size_t head = 4 * static_cast<size_t>(stream.lanes);
        if (stream.lanes < 1 || stream.lanes > kMaxLanes) throw std::invalid_argument("stream: lanes are not 1 to 32");
        if (stream.word_bytes < head || (stream.word_bytes - head) % 2 != 0) throw_truncated();
        words_.resize(stream.word_bytes - head + kReadAhead);
        std::copy(stream.words + head, stream.words + stream.word_bytes, words_.begin());
        strip_.next = words_.data();
        strip_.end = words_.data() + (stream.word_bytes - head);
        strip_.escapes = &escapes_;
        std::fill_n(strip_.states, kMaxLanes, kStateFloor);
        for (int l = 0; l < stream.lanes; ++l) {
            strip_.states[l] = load(stream.words + 4 * static_cast<size_t>(l), 4);
            if (strip_.states[l] < kStateFloor) throw std::invalid_argument("stream: a lane starts below its floor");
        }
    }

    // Whether rows are left; opens the next strip where one ended.
    bool ready() {
        while (rows_left_ == 0) {
            while (segment_ < stream_.segments.size() && first_ >= stream_.segments[segment_].segment.columns) {
                ++segment_;
                first_ = 0;
            }
            if (segment_ == stream_.segments.size()) return false;
            open();
        }
        return true;
    }
    void advance(size_t rows) { rows_left_ -= rows; }
    size_t rows_left() const { return rows_left_; }
    Strip* strip() { return &strip_; }

    void finish() {
        for (int l = 0; l < stream_.lanes; ++l)
            if (strip_.states[l] != kStateFloor)
                throw std::invalid_argument("stream: a lane does not end where it began");
        if (strip_.next != strip_.end) throw std::invalid_argument("stream: words are left over");
        escapes_.finish();
    }

   private:
    void open() {
        const ValueSegment& part = stream_.segments[segment_];
        const Segment& segment = part.segment;
        const auto lanes = static_cast<size_t>(stream_.lanes);
        const size_t width = std::min(lanes, segment.columns - first_);
        const Trellis trellis(segment.trellis);
        for (size_t l = 0; l < kMaxLanes; ++l) {
            const size_t j = first_ + std::min(l, width - 1);
            strip_.trellis[l] = 0;
            strip_.codes[l] = segment.column_codes[j];
            strip_.steps[l] = part.steps.column_steps[j];
            strip_.groups[l] = part.steps.groups[j];
        }
        const Values& values = values_for(sets_, part.steps.offsets);
        strip_.offsets = values.offsets();
        strip_.values = values.plain();
        strip_.width = static_cast<int>(width);
        strip_.row_codes = segment.row_codes;
        strip_.row_steps = part.steps.row_steps;
        strip_.group_count = part.steps.group_count;
        strip_.row_bytes = lanes * value_bytes_;
        strip_.out = static_cast<uint8_t*>(part.tiles) + first_ / lanes * segment.rows * strip_.row_bytes;
        strip_.shift = segment.shift;
        strip_.on_parity = trellis.on_parity();
        strip_.on_state = trellis.on_state();
        strip_.narrow = values.narrow(strip_, segment);
        rows_left_ = segment.rows;
        first_ += width;
    }

    const ValueStream& stream_;
    const ValueSets& sets_;
    size_t value_bytes_;
    std::vector<uint8_t> words_;
    EscapeReader escapes_;
    Strip strip_{};
    size_t segment_ = 0;
    size_t first_ = 0;
    size_t rows_left_ = 0;
};

void run(const Shared& shared, const Kernels& kernels, std::vector<std::unique_ptr<Runner>>& runners) {
    while (kernels.two != nullptr && runners.size() == 2 && runners[0]->ready() && runners[1]->ready()) {
        const size_t rows = std::min(runners[0]->rows_left(), runners[1]->rows_left());
        Strip* strips[2] = {runners[0]->strip(), runners[1]->strip()};
        const bool narrow = strips[0]->narrow != nullptr && strips[1]->narrow != nullptr;
        (narrow ? kernels.narrow_two : kernels.two)(shared, strips, rows);
        for (auto& runner : runners) runner->advance(rows);
    }
    for (auto& runner : runners) {
        while (runner->ready()) {
            Strip* strip = runner->strip();
            const bool narrow = strip->narrow != nullptr && kernels.narrow_one != nullptr;
            (narrow ? kernels.narrow_one : kernels.one)(shared, &strip, runner->rows_left());
            runner->advance(runner->rows_left());
        }
        runner->finish();
    }
}

// Calls work(0 .. units - 1) on up to `threads` threads; the first exception by number is thrown.
template <typename Work>
void in_parallel(size_t units, int threads, Work work) {
    std::vector<std::exception_ptr> failures(units);
    std::atomic<size_t> next{0};
    const auto loop = [&] {
        for (size_t unit = next++; unit < units; unit = next++) {
            try {
                work(unit);
            } catch (...) {
                failures[unit] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> pool;
    for (size_t t = 1; t < std::min<size_t>(std::max(threads, 1), units); ++t) pool.emplace_back(loop);
    loop();
    for (std::thread& thread : pool) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

template <typename T>
void untile_rows(const T* tiles, size_t rows, size_t columns, size_t lanes, const uint32_t* places, T* out,
                 size_t first, size_t last) {
    const size_t tile_count = (columns + lanes - 1) / lanes;
    std::vector<T> row(tile_count * lanes);
    for (size_t i = first; i < last; ++i) {
        for (size_t t = 0; t < tile_count; ++t)
            std::memcpy(row.data() + t * lanes, tiles + (t * rows + i) * lanes, lanes * sizeof(T));
        for (size_t j = 0; j < columns; ++j) out[i * columns + j] = row[places[j]];
    }
}

}  // namespace

void decode_values(const TableSet& tables, const std::vector<ValueStream>& streams, Format format, int threads) {
    const Shared shared{&tables, tables.decoding_table()};
    const Kernels kernels = kernels_for(format);
    ValueSets sets;
    for (const ValueStream& stream : streams)
        for (const ValueSegment& part : stream.segments)
            if (std::none_of(sets.begin(), sets.end(),
                             [&](const auto& set) { return set->offsets() == part.steps.offsets; }))
                sets.push_back(std::make_unique<Values>(tables, part.steps.offsets));
    const size_t together = streams.size() >= 2 * static_cast<size_t>(std::max(threads, 1)) ? 2 : 1;
    in_parallel((streams.size() + together - 1) / together, threads, [&](size_t unit) {
        std::vector<std::unique_ptr<Runner>> runners;
        for (size_t s = unit * together; s < std::min(streams.size(), (unit + 1) * together); ++s)
            runners.push_back(std::make_unique<Runner>(sets, streams[s], format));
        run(shared, kernels, runners);
    });
}

void untile(const void* tiles, size_t rows, size_t columns, int lanes, const uint32_t* places, Format format, void* out,
            int threads) {
    constexpr size_t block = 64;
    in_parallel((rows + block - 1) / block, threads, [&](size_t unit) {
        const size_t first = unit * block;
        const size_t last = std::min(rows, first + block);
        if (format == Format::kFloat32)
            untile_rows(static_cast<const float*>(tiles), rows, columns, lanes, places, static_cast<float*>(out), first,
                        last);
        else
            untile_rows(static_cast<const uint16_t*>(tiles), rows, columns, lanes, places, static_cast<uint16_t*>(out),
                        first, last);
    });
}

}  // namespace trueaxis
