#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "millrace/base/status.h"

namespace millrace {

struct HubProgress {
  std::string file;        // being downloaded
  int64_t done_bytes = 0;  // of all files of this download, what was already there included
  int64_t total_bytes = 0;
};

struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  std::string token;              // sent to the endpoint's own host only; empty: none
  std::string cache_dir;          // the folder that holds models--org--name
  bool offline = false;           // use what the cache holds, never the network
  std::string gguf_file;          // which GGUF of a repository without safetensors: its name, or a part of it such as "Q8_0"
  int max_attempts = 5;           // in a row without a byte received, on 429, 5xx and network errors
  int64_t retry_delay_ms = 1000;  // before the second attempt; doubles each time
  std::function<bool(const HubProgress&)> progress;  // called on the caller's thread; false cancels, and a later call resumes

  // HF_ENDPOINT, HF_TOKEN (or the token file that `hf auth login` writes), HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_HUB_OFFLINE.
  static HubOptions from_environment();
};

// Turns what a user typed into something Checkpoint::open() takes. An existing path is returned as it is. "org/name" or
// "org/name@revision" names a model on the hub: its configuration files and weights (safetensors; if there are none, one GGUF) are
// downloaded into the ordinary Hugging Face cache (huggingface.co/docs/hub/local-cache), unless they are there, and the snapshot
// folder or the GGUF in it is returned. Interrupted downloads resume. Every file is compared with the checksum the hub gives for
// it: SHA-256, or for small files git's SHA-1. What the server sends is untrusted: names that could leave the folder are refused.
// Blocks; several processes may call it for the same model at a time (lock files as huggingface_hub's).
Result<std::string> resolve_model(const std::string& model, const HubOptions& options);

}  // namespace millrace
