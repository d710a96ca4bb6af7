#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// What the post-processor puts around the ids of one text; the text itself may be left out or repeated.
class PostProcessor {
 public:
  // One place of the template: a fixed id, or the text.
  struct Part {
    std::optional<int32_t> id;  // absent: the text
  };
  PostProcessor() = default;    // the text alone
  explicit PostProcessor(std::vector<Part> parts) : parts_(std::move(parts)) {}

  // Reads the "post_processor" of a tokenizer.json.
  static Result<PostProcessor> parse(const json::value& description, int depth = 0);

  void apply(std::vector<int32_t>& ids) const;
  std::vector<int32_t> ids() const;  // the fixed ones

 private:
  bool is_text_alone() const { return parts_.size() == 1 && !parts_[0].id; }
  // This one applied to what the other gives.
  PostProcessor after(const PostProcessor& first) const;

  std::vector<Part> parts_ = {Part{}};
};

}  // namespace millrace
