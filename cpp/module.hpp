// What the parts of the bindings share: array types, checks, allocation.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace nb = nanobind;

namespace trueaxis {

template <typename T, size_t D>
using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <typename T, size_t D>
using InOut = nb::ndarray<T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <typename T, size_t D>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<D>>;

inline void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

// Memory to be filled completely, in large pages where the system has them: touching it first costs less there.
inline void* allocate_pages(size_t bytes) {
    constexpr size_t page = size_t{2} << 20;
    void* data = bytes < 2 * page ? std::malloc(bytes > 0 ? bytes : 1)
                                  : std::aligned_alloc(page, (bytes + page - 1) / page * page);
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= 2 * page) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
}

template <typename T, size_t D>
Out<T, D> allocate(std::array<size_t, D> shape) {
    size_t size = 1;
    for (const size_t extent : shape) size *= extent;
    // calloc: pages that a damaged file claims, but never fills, take no memory.
    T* data = static_cast<T*>(std::calloc(size > 0 ? size : 1, sizeof(T)));
    if (data == nullptr) throw std::bad_alloc();
    nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    return Out<T, D>(data, D, shape.data(), owner);
}

inline const uint8_t* data_of(const nb::bytes& bytes) { return reinterpret_cast<const uint8_t*>(bytes.c_str()); }

void bind_decoding(nb::module_& m);
void bind_planes(nb::module_& m);

}  // namespace trueaxis
