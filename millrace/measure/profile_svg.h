#pragma once

#include <span>
#include <string>
#include <string_view>

#include "millrace/measure/step_profile.h"

namespace millrace {

// The five characters that mean something in XML, as entities; what XML cannot hold, control characters and broken UTF-8, as U+FFFD.
std::string escape_xml(std::string_view text);

// A picture of profiles, one below the other, like a flame graph turned over: a step, below it its groups, below those their operations, as
// wide as their time. Under every operation: what the machine's bound explains, what was computed above it, and waiting.
// A self-contained SVG; pointing at a box shows its numbers.
std::string profile_svg(std::string_view heading, std::span<const StepProfile> profiles);

}  // namespace millrace
