// Any bytes as a family file: an error, or a description that binds to a checkpoint or says why not.
#include "millrace/base/check.h"
#include "millrace/model/family.h"
#include "tests/fuzz/model_directory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace millrace;
  static const ModelDirectory model("llama");
  static const Checkpoint checkpoint = [] {
    auto opened = Checkpoint::open(model.path());
    MR_CHECK(opened.is_ok(), "the golden model does not open");
    return std::move(opened).value();
  }();
  const auto family = Family::parse({reinterpret_cast<const char*>(data), size}, "family.json");
  if (family.is_ok()) static_cast<void>(bind_network(*family, checkpoint).is_ok());
  return 0;
}
