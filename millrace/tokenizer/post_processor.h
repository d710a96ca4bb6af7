#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "millrace/base/json.h"
#include "millrace/base/status.h"

namespace millrace {

// What the post-processor puts around the ids of one text, or around and between those of two; a text itself may be left out.
class PostProcessor {
 public:
  // One place of the template: a fixed id, or a text.
  struct Part {
    std::optional<int32_t> id;  // absent: the text
    int32_t text = 0;           // which of a pair
    int32_t type = 0;           // the token type of its tokens
  };
  PostProcessor() = default;  // the text alone; of a pair one after the other
  explicit PostProcessor(std::vector<Part> parts) : parts_(std::move(parts)) {}
  PostProcessor(std::vector<Part> parts, std::vector<Part> pair) : parts_(std::move(parts)), pair_(std::move(pair)) {}

  // Reads the "post_processor" of a tokenizer.json.
  static Result<PostProcessor> parse(const json::value& description, int depth = 0);

  void apply(std::vector<int32_t>& ids) const;
  std::vector<int32_t> ids() const;  // the fixed ones

  // The same with the token type of each: `second` may be null.
  void join(const std::vector<int32_t>& first, const std::vector<int32_t>* second, std::vector<int32_t>& ids,
            std::vector<int32_t>& types) const;
  int64_t num_added(bool pair) const;  // fixed ids around and between

 private:
  bool is_text_alone() const { return parts_.size() == 1 && !parts_[0].id; }
  bool is_pair_alone() const { return pair_.size() == 2 && !pair_[0].id && !pair_[1].id; }
  // This one applied to what the other gives.
  PostProcessor after(const PostProcessor& first) const;

  std::vector<Part> parts_ = {Part{}};
  std::vector<Part> pair_ = {Part{.id = {}, .text = 0, .type = 0}, Part{.id = {}, .text = 1, .type = 1}};
};

}  // namespace millrace
