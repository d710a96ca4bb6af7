#include "millrace/formats/hub_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "millrace/base/mapped_file.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

Status failed(const fs::path& path, std::string_view doing, const std::error_code& error) {
  return Status::unavailable(fmt::format("{}: cannot {}: {}", path.string(), doing, error.message()));
}

std::string folder_name(const std::string& repository) {
  const auto slash = repository.find('/');
  return "models--" + repository.substr(0, slash) + "--" + repository.substr(slash + 1);
}

}  // namespace

bool is_commit_id(std::string_view text) {
  return text.size() == 40 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

HubCache::HubCache(const std::string& cache_dir, const std::string& repository)
    : folder_((fs::path(cache_dir) / folder_name(repository)).string()),
      locks_((fs::path(cache_dir) / ".locks" / folder_name(repository)).string()) {}

std::string HubCache::snapshot(const std::string& commit) const { return (fs::path(folder_) / "snapshots" / commit).string(); }
std::string HubCache::blob(const std::string& id) const { return (fs::path(folder_) / "blobs" / id).string(); }
std::string HubCache::lock(const std::string& id) const { return (fs::path(locks_) / (id + ".lock")).string(); }

std::optional<std::string> HubCache::commit_of(const std::string& revision) const {
  if (is_commit_id(revision)) return revision;
  auto text = read_text_file((fs::path(folder_) / "refs" / revision).string(), 1024);
  if (!text.is_ok()) return std::nullopt;
  const std::string commit = text->substr(0, 40);
  return is_commit_id(commit) ? std::optional<std::string>(commit) : std::nullopt;
}

std::vector<std::string> HubCache::files_of(const std::string& commit) const {
  std::vector<std::string> files;
  const fs::path base = snapshot(commit);
  std::error_code error;
  fs::recursive_directory_iterator entries(base, error);
  for (; !error && entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    std::error_code ignored;
    if (fs::is_regular_file(entries->path(), ignored)) files.push_back(entries->path().lexically_relative(base).string());
  }
  std::ranges::sort(files);
  return files;
}

bool HubCache::has_file(const std::string& commit, const std::string& file) const {
  std::error_code ignored;
  return fs::is_regular_file(fs::path(snapshot(commit)) / file, ignored);
}

Status HubCache::create_folders() const {
  for (const fs::path& folder :
       {fs::path(folder_) / "blobs", fs::path(folder_) / "snapshots", fs::path(folder_) / "refs", fs::path(locks_)}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) return failed(folder, "create", error);
  }
  return Status::ok();
}

Status HubCache::link(const std::string& commit, const std::string& file, const std::string& id) const {
  const fs::path path = fs::path(snapshot(commit)) / file;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return failed(path.parent_path(), "create", error);
  const fs::path target = fs::path(blob(id)).lexically_relative(path.parent_path());
  // Made under another name and renamed, so that a link is replaced in one step.
  const fs::path fresh = path.string() + fmt::format(".{}.link", ::getpid());
  fs::remove(fresh, error);
  fs::create_symlink(target, fresh, error);
  if (!error) fs::rename(fresh, path, error);
  return error ? failed(path, "link", error) : Status::ok();
}

Status HubCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (is_commit_id(revision)) return Status::ok();
  const fs::path path = fs::path(folder_) / "refs" / revision;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const fs::path fresh = path.string() + fmt::format(".{}.new", ::getpid());
  std::ofstream(fresh, std::ios::binary) << commit;
  if (!error) fs::rename(fresh, path, error);
  return error ? failed(path, "write", error) : Status::ok();
}

}  // namespace millrace
