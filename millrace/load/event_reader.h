#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace millrace {

// The data of server-sent events, read from bytes as they come; which events it makes of a text does not depend on the pieces in which the
// text arrives. Comments and fields other than data are passed over. https://html.spec.whatwg.org/multipage/server-sent-events.html
class EventReader {
 public:
  static constexpr std::size_t kEventBytesMax = 1 << 20;

  // Calls `on_data` for every event that `bytes` ends, until it gives false. False: it did, or an event is longer than kEventBytesMax.
  bool put(std::string_view bytes, const std::function<bool(std::string_view)>& on_data);

  bool is_too_long() const { return too_long_; }
  bool is_between_events() const { return line_.empty() && data_.empty(); }  // a text that ends here was not cut within an event

 private:
  bool take_line(std::string_view line, const std::function<bool(std::string_view)>& on_data);

  std::string line_, data_;  // of the line and the event that have not ended
  bool has_data_ = false, after_return_ = false, too_long_ = false;
};

}  // namespace millrace
