#pragma once

#include <string>
#include <vector>

#include "millrace/measure/step_cost.h"
#include "millrace/model/step_times.h"

// Where the time of a step goes, operation by operation, and how far each is from what the machine could do.
namespace millrace {

struct ProfileRow {
  std::string group, name;  // "attention", "q k v"; of one layer: "layer 3", "attention: q k v"
  int64_t count = 0;        // operations a step that the row sums up
  double busy_seconds = 0;  // computing, mean over the workers
  double wait_seconds = 0;  // until the last of them was done, mean over the workers
  OpCost cost;
  double bound_seconds = 0;
};

// Of one step, or of all steps of a prefill. The parts add up:
//   seconds = start_seconds + sum over rows of (busy_seconds + wait_seconds)
struct StepProfile {
  std::string title;
  int num_threads = 0;
  double seconds = 0;
  double start_seconds = 0;      // planning and waking the workers
  std::vector<ProfileRow> rows;  // in the order of the program

  double busy_seconds() const;
  double wait_seconds() const;
  double bound_seconds() const;
};

// What an operation is called in a profile.
struct OpLabel {
  std::string group, name;
};
OpLabel op_label(const CpuExecutor& executor, const Op& op);

// Sums up the times of steps of one kind.
class ProfileSampler {
 public:
  explicit ProfileSampler(const CpuExecutor& executor) : executor_(executor) {}

  // Adds a step to the sample that is open.
  void add(const StepPlan& plan, const StepTimes& times);
  // Ends the sample: one step of decoding, all steps of a prefill.
  void close_sample();

  // The mean over the fastest tenth of the samples, at least one: what other programs did during the others does not count. Operations of
  // one kind are one row, or one for each layer. MR_CHECKs that there is a sample.
  StepProfile profile(std::string_view title, const MachineBound& bound, bool per_layer) const;

 private:
  struct Sample {
    double seconds = 0, start_seconds = 0;
    std::vector<double> busy_seconds, wait_seconds;  // [operations of the program]
    std::vector<OpCost> costs;
  };
  const CpuExecutor& executor_;
  Sample open_;
  std::vector<Sample> samples_;
  int num_threads_ = 0;
};

// A table for people: a line an operation, then waiting, start and sum.
std::string profile_table(const StepProfile& profile);

json::object profile_json(const StepProfile& profile);

}  // namespace millrace
