// Instruction sets; see isa.hpp.
#include "isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace trueaxis {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Isa widest() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx2"))
        return Isa::kAvx512;
    if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
    return Isa::kPortable;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{widest()};
    return isa;
}

}  // namespace

Isa instruction_set() { return chosen().load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() { return {kNames, kNames + static_cast<int>(widest()) + 1}; }

void use_instruction_set(const std::string& name) {
    for (int i = 0; i <= static_cast<int>(widest()); ++i) {
        if (name != kNames[i]) continue;
        chosen().store(static_cast<Isa>(i));
        return;
    }
    throw std::invalid_argument("instruction set '" + name + "' is unknown or beyond this processor");
}

void use_environment() {
    if (const char* name = std::getenv("TRUEAXIS_ISA")) use_instruction_set(name);
}

}  // namespace trueaxis
