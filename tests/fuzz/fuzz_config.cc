// Any bytes as config.json beside real weights: an error, or a network that binds.
#include "millrace/model/family.h"
#include "tests/fuzz/model_directory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace millrace;
  static const ModelDirectory llama("llama"), gemma("gemma3_text");
  for (const ModelDirectory* model : {&llama, &gemma}) {
    model->replace("config.json", {reinterpret_cast<const char*>(data), size});
    const auto checkpoint = Checkpoint::open(model->path());
    if (!checkpoint.is_ok()) return 0;
    const auto family = choose_family(*checkpoint, std::nullopt);
    if (family.is_ok()) static_cast<void>(bind_network(*family, *checkpoint).is_ok());
  }
  return 0;
}
