// Resolves a model as the command line does and prints where it is, for test_hub.py:
//   hub_fetch MODEL [--gguf-file NAME] [--retry-delay-ms N] [--cancel-after BYTES]
// Progress goes to the error stream as "progress FILE DONE TOTAL". Exit status 1 and the message on the error stream on failure.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "millrace/formats/hub.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  millrace::HubOptions options = millrace::HubOptions::from_environment();
  long long cancel_after = -1;
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--gguf-file") options.gguf_file = argv[i + 1];
    if (flag == "--retry-delay-ms") options.retry_delay_ms = std::atoll(argv[i + 1]);
    if (flag == "--cancel-after") cancel_after = std::atoll(argv[i + 1]);
  }
  options.progress = [cancel_after](const millrace::HubProgress& progress) {
    std::fprintf(stderr, "progress %s %lld %lld\n", progress.file.c_str(), static_cast<long long>(progress.done_bytes),
                 static_cast<long long>(progress.total_bytes));
    return cancel_after < 0 || progress.done_bytes < cancel_after;
  };
  const auto path = millrace::resolve_model(argv[1], options);
  if (!path.is_ok()) {
    std::fprintf(stderr, "error %s\n", path.status().message().c_str());
    return 1;
  }
  std::printf("%s\n", path->c_str());
  return 0;
}
