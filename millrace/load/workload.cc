#include "millrace/load/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numbers>
#include <utility>

namespace millrace {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Streams of random numbers of one seed: a request's words and lengths, and the times of arrival.
enum Stream : uint64_t { kPrefixStream = 1, kLengthStream = 2, kWordStream = 3, kArrivalStream = 4, kScaleStream = 5 };
uint64_t stream_of(Stream kind, int64_t point = 0, int64_t index = 0) {
  return mix(mix(kind * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(point)) + static_cast<uint64_t>(index));
}

// Short and common: with a space before it each is one token of nearly every vocabulary learned from English text.
constexpr std::string_view kWords[] = {
    "time",     "year",       "people", "way",     "day",     "man",    "thing",   "woman", "life",    "child",    "world",   "school",
    "state",    "family",     "group",  "hand",    "part",    "place",  "case",    "week",  "company", "system",   "program", "question",
    "work",     "government", "number", "night",   "point",   "home",   "water",   "room",  "mother",  "area",     "money",   "story",
    "fact",     "month",      "lot",    "right",   "study",   "book",   "eye",     "job",   "word",    "business", "issue",   "side",
    "kind",     "head",       "house",  "service", "friend",  "father", "power",   "hour",  "game",    "line",     "end",     "member",
    "law",      "car",        "city",   "name",    "team",    "minute", "idea",    "body",  "back",    "face",     "others",  "level",
    "office",   "door",       "health", "person",  "art",     "war",    "history", "party", "result",  "change",   "morning", "reason",
    "research", "girl",       "moment", "air",     "teacher", "force",  "order",   "great", "small",   "large",    "old",     "new",
    "long",     "little",     "good",   "high",    "young",   "black",  "white",   "red",   "green",   "free",     "open",    "early",
    "late",     "hard",       "clear",  "and",     "the",     "with",   "from",    "that",  "this",    "have",     "will",    "when",
    "where",    "who",        "what",   "which",   "then",    "than",   "them",    "some",  "into",    "over",     "under",   "after",
    "before",   "between",    "about",  "could",   "would",   "should", "there"};

int64_t drawn_length(const LogNormal& lengths, LoadRandom& random) {
  return static_cast<int64_t>(std::lround(std::min(lengths.median * std::exp(lengths.sigma * random.normal()), 1e9)));
}

}  // namespace

LoadRandom::LoadRandom(uint64_t seed, uint64_t stream) : state_(mix(seed ^ mix(stream))) {}

uint64_t LoadRandom::next() {
  state_ += 0x9e3779b97f4a7c15ULL;
  return mix(state_);
}

double LoadRandom::uniform() { return static_cast<double>((next() >> 11) + 1) * 0x1p-53; }

double LoadRandom::log_uniform() { return std::log(uniform()); }

double LoadRandom::normal() {  // Box and Muller 1958
  const double radius = std::sqrt(-2 * log_uniform());
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {}

void Workload::append_words(std::string& text, int64_t num_words, uint64_t stream) const {
  LoadRandom random(options_.seed, stream);
  const std::size_t num_own = options_.words.size();
  std::size_t next = num_own > 0 ? random.next() % num_own : 0;
  for (int64_t i = 0; i < num_words; ++i) {
    if (!text.empty()) text += ' ';
    if (num_own > 0) {
      text += options_.words[next];
      next = next + 1 < num_own ? next + 1 : 0;
    } else {
      text += kWords[random.next() % std::size(kWords)];
    }
  }
}

std::string Workload::words(int64_t num_words, uint64_t stream) const {
  std::string text;
  append_words(text, num_words, stream_of(kScaleStream, 0, static_cast<int64_t>(stream)));
  return text;
}

PlannedRequest Workload::request(int64_t point, int64_t index) const {
  PlannedRequest request;
  int64_t own_tokens = options_.prompt_tokens;
  request.output_tokens = options_.output_tokens;
  if (options_.lengths == Lengths::kShareGpt) {
    constexpr int64_t kShortest = 4, kLongestPrompt = 1024, kLongestPair = 2048;
    LoadRandom random(options_.seed, stream_of(kLengthStream, point, index));
    do {
      own_tokens = drawn_length(kShareGptPrompt, random);
      request.output_tokens = drawn_length(kShareGptOutput, random);
    } while (own_tokens < kShortest || own_tokens > kLongestPrompt || request.output_tokens < kShortest ||
             own_tokens + request.output_tokens > kLongestPair);
  }
  request.prompt_tokens = options_.shared_prefix_tokens + own_tokens;
  const auto words_for = [&](double tokens) { return std::max<int64_t>(0, std::llround(tokens / scale_.per_word)); };
  const int64_t num_prefix_words = words_for(static_cast<double>(options_.shared_prefix_tokens));
  append_words(request.prompt, num_prefix_words, stream_of(kPrefixStream));
  const int64_t num_words = words_for(static_cast<double>(request.prompt_tokens) - scale_.extra);
  append_words(request.prompt, std::max<int64_t>(1, num_words - num_prefix_words), stream_of(kWordStream, point, index));
  return request;
}

double Workload::arrival_gap_s(int64_t point, int64_t index, double rate) const {
  return LoadRandom(options_.seed, stream_of(kArrivalStream, point, index)).exponential() / rate;
}

Result<std::vector<std::string>> read_words(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::not_found(fmt::format("cannot read {}", path));
  std::vector<std::string> words;
  for (std::string word; file >> word;) words.push_back(std::move(word));
  if (words.size() < 2) return Status::invalid_argument(fmt::format("{} has {} words, expected at least 2", path, words.size()));
  return words;
}

}  // namespace millrace
