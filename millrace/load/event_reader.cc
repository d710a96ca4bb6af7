#include "millrace/load/event_reader.h"

#include <algorithm>
#include <utility>

namespace millrace {

bool EventReader::put(std::string_view bytes, const std::function<bool(std::string_view)>& on_data) {
  while (!bytes.empty()) {
    if (after_return_ && bytes.front() == '\n') bytes.remove_prefix(1);  // the second half of \r\n
    after_return_ = false;
    const std::size_t end = bytes.find_first_of("\r\n");
    if (line_.size() + data_.size() + std::min(end, bytes.size()) > kEventBytesMax) {
      too_long_ = true;
      return false;
    }
    if (end == std::string_view::npos) {
      line_.append(bytes);
      return true;
    }
    after_return_ = bytes[end] == '\r';
    bool goes_on = true;
    if (line_.empty()) {
      goes_on = take_line(bytes.substr(0, end), on_data);
    } else {
      line_.append(bytes.substr(0, end));
      goes_on = take_line(line_, on_data);
      line_.clear();
    }
    if (!goes_on) return false;
    bytes.remove_prefix(end + 1);
  }
  return true;
}

bool EventReader::take_line(std::string_view line, const std::function<bool(std::string_view)>& on_data) {
  if (line.empty()) {
    if (!has_data_) return true;
    has_data_ = false;
    const std::string data = std::move(data_);
    data_.clear();
    return on_data(data);
  }
  if (!line.starts_with("data") || (line.size() > 4 && line[4] != ':')) return true;
  std::string_view value = line.size() > 5 ? line.substr(5) : std::string_view();
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_.append(value);
  has_data_ = true;
  return true;
}

}  // namespace millrace
