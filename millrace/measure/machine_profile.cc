#include "millrace/measure/machine_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

namespace millrace {
namespace {

std::string cpu_name() {
  std::map<std::string, std::string> fields;  // of the first CPU
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t end = line.find_last_not_of(" \t", colon - 1), begin = line.find_first_not_of(" \t", colon + 1);
    if (end != std::string::npos && begin != std::string::npos) fields[line.substr(0, end + 1)] = line.substr(begin);
  }
  if (fields["model name"].empty()) return "unknown CPU";
  return fmt::format("{} ({}-{}-{})", fields["model name"], fields["cpu family"], fields["model"], fields["stepping"]);
}

// The largest data cache of CPU 0, from sysfs: "32K", "480M".
int64_t last_level_cache_bytes() {
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/size", index));
    int64_t size = 0;
    char unit = 0;
    if (!(file >> size)) break;
    file >> unit;
    largest = std::max(largest, size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0));
  }
  return largest;
}

json::object rate_json(const MeasuredRate& rate) { return {{"best", rate.best}, {"median", rate.median}}; }

// Reads fields of one object; the first failure is kept.
class FieldReader {
 public:
  FieldReader(const json::value& value, std::string where) : where_(std::move(where)) {
    if (value.is_object()) {
      object_ = &value.as_object();
    } else {
      fail("is no object");
    }
  }

  const json::value* find(const char* name) {
    const json::value* value = object_ == nullptr ? nullptr : object_->if_contains(name);
    if (value == nullptr) fail(fmt::format("has no \"{}\"", name));
    return value;
  }
  double number(const char* name) {
    const json::value* value = find(name);
    if (value == nullptr) return 0;
    boost::system::error_code error;
    const double number = value->to_number<double>(error);
    if (error || !std::isfinite(number) || number < 0 || number > 1e18) {
      fail(fmt::format("\"{}\" is no number that a measurement gives", name));
      return 0;
    }
    return number;
  }
  int64_t integer(const char* name) { return static_cast<int64_t>(number(name)); }
  std::string text(const char* name) {
    const json::value* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_string()) {
      fail(fmt::format("\"{}\" is no string", name));
      return {};
    }
    return std::string(value->as_string());
  }
  MeasuredRate rate(const char* name) {
    const json::value* value = find(name);
    if (value == nullptr) return {};
    FieldReader fields(*value, fmt::format("{}.{}", where_, name));
    const MeasuredRate rate{fields.number("best"), fields.number("median")};
    merge(fields);
    return rate;
  }
  template <class Visit>  // visit(FieldReader&)
  void each(const char* name, const Visit& visit) {
    const json::value* value = find(name);
    if (value == nullptr) return;
    if (!value->is_array()) return fail(fmt::format("\"{}\" is no array", name));
    for (const json::value& item : value->as_array()) {
      FieldReader fields(item, fmt::format("{}.{}", where_, name));
      visit(fields);
      merge(fields);
    }
  }
  void fail(const std::string& what) {
    if (status_.is_ok()) status_ = Status::data_loss(fmt::format("{} {}", where_, what));
  }
  const Status& status() const { return status_; }

 private:
  void merge(const FieldReader& other) {
    if (status_.is_ok()) status_ = other.status_;
  }
  std::string where_;
  const json::object* object_ = nullptr;
  Status status_;
};

}  // namespace

std::string_view arithmetic_name(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kInt8: return "int8";
    case Arithmetic::kBf16: return "bf16";
    case Arithmetic::kF32: return "f32";
  }
  return "unknown";
}

double ThreadProfile::peak(Isa isa, Arithmetic arithmetic) const {
  for (const Compute& level : compute) {
    if (level.isa != isa) continue;
    const auto rate = [&](Arithmetic a) { return level.rates[static_cast<std::size_t>(a)].best; };
    return arithmetic == Arithmetic::kBf16 ? std::max(rate(Arithmetic::kBf16), rate(Arithmetic::kF32)) : rate(arithmetic);
  }
  return 0;
}

const ThreadProfile* MachineProfile::of_threads(int num_threads) const {
  for (const ThreadProfile& profile : threads) {
    if (profile.num_threads == num_threads) return &profile;
  }
  return nullptr;
}

bool MachineProfile::same_machine(const MachineProfile& other) const {
  return cpu == other.cpu && isa == other.isa && num_cpus == other.num_cpus && version == other.version &&
         last_level_cache_bytes == other.last_level_cache_bytes;
}

MachineProfile this_machine() {
  MachineProfile profile;
  profile.cpu = cpu_name();
  for (Isa isa : kAllIsas) {
    if (isa_runnable(isa)) profile.isa = isa_name(isa);
  }
  profile.num_cpus = usable_cpus();
  profile.version = MILLRACE_VERSION;
  profile.last_level_cache_bytes = last_level_cache_bytes();
  return profile;
}

json::object to_json(const MachineProfile& profile) {
  json::array threads;
  for (const ThreadProfile& t : profile.threads) {
    json::array caches, compute;
    for (const auto& cache : t.caches) {
      caches.push_back(
          json::object{{"level", cache.level}, {"buffer_bytes", cache.buffer_bytes}, {"bytes_per_second", rate_json(cache.read)}});
    }
    for (const auto& level : t.compute) {
      json::object object{{"isa", isa_name(level.isa)}};
      for (std::size_t a = 0; a < kNumArithmetics; ++a) {
        const std::string key = fmt::format("{}_operations_per_second", arithmetic_name(static_cast<Arithmetic>(a)));
        object[key] = rate_json(level.rates[a]);
      }
      compute.push_back(std::move(object));
    }
    threads.push_back(json::object{{"threads", t.num_threads},
                                   {"read_bytes_per_second", json::object{{"small_pages", rate_json(t.read_small_pages)},
                                                                          {"huge_pages", rate_json(t.read_huge_pages)}}},
                                   {"caches", std::move(caches)},
                                   {"compute", std::move(compute)},
                                   {"barrier_seconds", t.barrier_seconds},
                                   {"stage_seconds", t.stage_seconds}});
  }
  return {{"cpu", profile.cpu},
          {"isa", profile.isa},
          {"num_cpus", profile.num_cpus},
          {"version", profile.version},
          {"last_level_cache_bytes", profile.last_level_cache_bytes},
          {"memory_buffer_bytes", profile.memory_buffer_bytes},
          {"huge_page_bytes", profile.huge_page_bytes},
          {"profiles", std::move(threads)}};
}

Result<MachineProfile> machine_profile_from_json(const json::value& value) {
  FieldReader fields(value, "machine profile");
  MachineProfile profile;
  profile.cpu = fields.text("cpu");
  profile.isa = fields.text("isa");
  profile.num_cpus = static_cast<int>(fields.integer("num_cpus"));
  profile.version = fields.text("version");
  profile.last_level_cache_bytes = fields.integer("last_level_cache_bytes");
  profile.memory_buffer_bytes = fields.integer("memory_buffer_bytes");
  profile.huge_page_bytes = fields.integer("huge_page_bytes");
  fields.each("profiles", [&](FieldReader& t) {
    ThreadProfile thread;
    thread.num_threads = static_cast<int>(t.integer("threads"));
    if (const json::value* read = t.find("read_bytes_per_second")) {
      FieldReader kinds(*read, "read_bytes_per_second");
      thread.read_small_pages = kinds.rate("small_pages");
      thread.read_huge_pages = kinds.rate("huge_pages");
      if (!kinds.status().is_ok()) t.fail(kinds.status().message());
    }
    t.each("caches", [&](FieldReader& c) {
      thread.caches.push_back({static_cast<int>(c.integer("level")), c.integer("buffer_bytes"), c.rate("bytes_per_second")});
    });
    t.each("compute", [&](FieldReader& c) {
      ThreadProfile::Compute level;
      const auto isa = parse_isa(c.text("isa"));
      if (!isa.is_ok()) return c.fail(isa.status().message());
      level.isa = *isa;
      for (std::size_t a = 0; a < kNumArithmetics; ++a) {
        level.rates[a] = c.rate(fmt::format("{}_operations_per_second", arithmetic_name(static_cast<Arithmetic>(a))).c_str());
      }
      thread.compute.push_back(level);
    });
    thread.barrier_seconds = t.number("barrier_seconds");
    thread.stage_seconds = t.number("stage_seconds");
    if (thread.num_threads < 1 || thread.num_threads > 4096 || thread.read_bandwidth() <= 0 || thread.compute.empty())
      t.fail("is no measurement");
    profile.threads.push_back(std::move(thread));
  });
  MR_RETURN_IF_ERROR(fields.status());
  std::sort(profile.threads.begin(), profile.threads.end(), [](const auto& a, const auto& b) { return a.num_threads < b.num_threads; });
  return profile;
}

}  // namespace millrace
