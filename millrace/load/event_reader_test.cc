#include "millrace/load/event_reader.h"

#include <gtest/gtest.h>

#include <vector>

namespace millrace {
namespace {

std::vector<std::string> events_of(std::string_view text, std::size_t piece_bytes) {
  EventReader reader;
  std::vector<std::string> events;
  for (std::size_t i = 0; i < text.size(); i += piece_bytes) {
    EXPECT_TRUE(reader.put(text.substr(i, piece_bytes), [&](std::string_view data) {
      events.emplace_back(data);
      return true;
    }));
  }
  return events;
}

TEST(EventReader, PiecesMakeNoDifference) {
  const std::string text =
      ": a comment\n\ndata: {\"a\": 1}\n\nevent: x\nid: 7\r\ndata:two\r\ndata: lines\r\n\r\ndata\n\ndatabase: no\n\n"
      "data:  kept space\r\rdata: [DONE]\n\ndata: without an end\n";
  const std::vector<std::string> expected{"{\"a\": 1}", "two\nlines", "", " kept space", "[DONE]"};
  for (std::size_t piece = 1; piece <= text.size(); ++piece) EXPECT_EQ(events_of(text, piece), expected) << piece;
}

TEST(EventReader, StopsWhereItIsTold) {
  EventReader reader;
  int num_events = 0;
  EXPECT_FALSE(reader.put("data: 1\n\ndata: 2\n\n", [&](std::string_view) { return ++num_events < 1; }));
  EXPECT_EQ(num_events, 1);
}

TEST(EventReader, RefusesAnEndlessEvent) {
  for (const char* text : {"x", "data: y\n"}) {
    EventReader reader;
    const auto any = [](std::string_view) { return true; };
    std::size_t num_bytes = 0;
    while (num_bytes < 4 * EventReader::kEventBytesMax && reader.put(text, any)) num_bytes += std::string_view(text).size();
    EXPECT_TRUE(reader.is_too_long());
    EXPECT_LE(num_bytes, 8 * EventReader::kEventBytesMax / 2);
  }
}

TEST(EventReader, KnowsWhenItIsCut) {
  EventReader reader;
  const auto any = [](std::string_view) { return true; };
  EXPECT_TRUE(reader.put("data: 1\n\n", any));
  EXPECT_TRUE(reader.is_between_events());
  EXPECT_TRUE(reader.put("data: {", any));
  EXPECT_FALSE(reader.is_between_events());
}

}  // namespace
}  // namespace millrace
