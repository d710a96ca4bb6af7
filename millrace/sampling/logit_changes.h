#pragma once

#include <span>

#include "millrace/sampling/sampling.h"

// What a request does to the logits before any token is weighed: bias, penalties, DRY and masks.
namespace millrace {

bool changes_logits(const SamplingInput& input);

// The logits with all of it into scratch.logits; tokens that may not be drawn are -infinity there, every other value is finite.
void change_logits(std::span<const float> logits, const SamplingInput& input, SamplingScratch& scratch);

// lengths[j], j in [1, reversed.size()): how many tokens from j on equal those from 0 on. Linear time (Gusfield's Z values).
// Of a text in reverse: how much of the text's end stands also right before its token j - 1. lengths[0] is 0.
void matches_of_the_end(std::span<const int32_t> reversed, std::vector<int32_t>& lengths);

}  // namespace millrace
