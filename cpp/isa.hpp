// Instruction sets: which variant of a kernel runs. Every variant gives the same bytes.
//
//   TRUEAXIS_ISA or use_instruction_set(name) ─▶ the set in use; otherwise the widest that the processor has
#pragma once

#include <string>
#include <vector>

namespace trueaxis {

enum class Isa { kPortable, kAvx2, kAvx512 };

Isa instruction_set();

// Names that this processor can run, "portable" first.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument on a name that is unknown or that the processor cannot run.
void use_instruction_set(const std::string& name);

// Takes TRUEAXIS_ISA from the environment if it is set.
void use_environment();

}  // namespace trueaxis
