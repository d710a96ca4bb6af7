#pragma once

#include <optional>
#include <string>
#include <vector>

#include "millrace/base/status.h"

namespace millrace {

// One model's folder in the Hugging Face cache (huggingface.co/docs/hub/local-cache), shared with other programs:
//   <cache>/models--org--name/blobs/<checksum>           the bytes
//                             snapshots/<commit>/<file>  relative links to blobs
//                             refs/<revision>            a text file with the commit
//   <cache>/.locks/models--org--name/<checksum>.lock
class HubCache {
 public:
  HubCache(const std::string& cache_dir, const std::string& repository);

  const std::string& folder() const { return folder_; }
  std::string snapshot(const std::string& commit) const;
  std::string blob(const std::string& id) const;
  std::string lock(const std::string& id) const;

  // The commit that a branch or tag stood for when it was last downloaded; a full commit id stands for itself.
  std::optional<std::string> commit_of(const std::string& revision) const;
  // The files of a snapshot whose links lead somewhere, relative to it.
  std::vector<std::string> files_of(const std::string& commit) const;
  bool has_file(const std::string& commit, const std::string& file) const;

  Status create_folders() const;
  Status link(const std::string& commit, const std::string& file, const std::string& id) const;
  Status write_ref(const std::string& revision, const std::string& commit) const;

 private:
  std::string folder_, locks_;
};

bool is_commit_id(std::string_view text);  // 40 hex digits

}  // namespace millrace
