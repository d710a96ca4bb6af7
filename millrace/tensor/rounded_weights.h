#pragma once

#include "millrace/base/status.h"
#include "millrace/tensor/grouped_weights.h"

namespace millrace {

// A GroupedWeights that no quantizer stored: its codes are made of plain weights while they are read (model/quantize.h). Packing reads it
// by whole rows, since each of the three calls would make the row anew, and since a row may hold what no code can stand for. Any thread.
class RoundedWeights : public GroupedWeights {
 public:
  bool symmetric = true;  // every zero point is the middle: known without making a row

  // Codes [k], scales [num_groups] and of integer codes zero points [num_groups]. Invalid: a weight that is infinite or not a number, by
  // its place.
  virtual Status read_row(int64_t row, uint8_t* codes, float* scales, uint8_t* zero_points) const = 0;
};

}  // namespace millrace
