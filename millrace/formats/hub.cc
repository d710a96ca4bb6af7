#include "millrace/formats/hub.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include "millrace/base/json.h"
#include "millrace/base/mapped_file.h"
#include "millrace/formats/hub_blob.h"
#include "millrace/formats/hub_cache.h"
#include "millrace/formats/hub_files.h"
#include "millrace/formats/hub_http.h"
#include "millrace/formats/quoted_name.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxListingBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxFiles = 100'000;
constexpr int64_t kMaxFileBytes = int64_t{1} << 44;
constexpr int64_t kMaxRetryDelayMs = 60'000;
constexpr int64_t kDiskMarginBytes = int64_t{256} << 20;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_true(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text == "1" || text == "TRUE" || text == "YES" || text == "ON";
}

// A file to download, as the server describes it.
struct RemoteFile {
  std::string name;
  std::string id;  // its checksum, and its name among the blobs
  int64_t bytes = 0;
};

// One download of one model.
class Download {
 public:
  Download(const HubModelName& name, const HubOptions& options)
      : name_(name), options_(options), cache_(options.cache_dir, name.repository), http_(options.endpoint, options.token) {}

  Result<std::string> from_cache() const {
    const std::string wanted = fmt::format("{}@{}", name_.repository, name_.revision);
    const auto commit = cache_.commit_of(name_.revision);
    const auto files = commit ? cache_.files_of(*commit) : std::vector<std::string>();
    if (files.empty()) {
      return Status::not_found(
          fmt::format("{}: HF_HUB_OFFLINE is set and the cache has no copy of it (looked in {}); unset it to download, or name a directory",
                      wanted, cache_.folder()));
    }
    auto selection = select_hub_files(files, options_.gguf_file);
    if (!selection.is_ok())
      return selection.status().with_context(fmt::format("{}: the cached copy in {}", wanted, cache_.snapshot(*commit)));
    return path_of(*commit, *selection);
  }

  Result<std::string> run() {
    MR_ASSIGN_OR_RETURN(const json::value listing, list_model());
    MR_ASSIGN_OR_RETURN(const std::vector<std::string> files, file_names(listing));
    auto selected = select_hub_files(files, options_.gguf_file);
    if (!selected.is_ok()) return selected.status().with_context(fmt::format("{}/{}", http_.endpoint(), name_.repository));
    const HubSelection& selection = *selected;

    MR_RETURN_IF_ERROR(cache_.create_folders());
    std::vector<RemoteFile> missing;
    for (const auto& file : selection.files) {
      if (cache_.has_file(commit_, file)) continue;
      MR_ASSIGN_OR_RETURN(RemoteFile remote, describe(file));
      missing.push_back(std::move(remote));
    }
    for (const auto& file : missing) progress_.total_bytes += file.bytes;
    MR_RETURN_IF_ERROR(check_disk(missing));
    for (const auto& file : missing) MR_RETURN_IF_ERROR(fetch(file));
    // Written last: offline use then never meets a snapshot that was not finished.
    MR_RETURN_IF_ERROR(cache_.write_ref(name_.revision, commit_));
    return path_of(commit_, selection);
  }

 private:
  std::string path_of(const std::string& commit, const HubSelection& selection) const {
    const std::string snapshot = cache_.snapshot(commit);
    return selection.gguf.empty() ? snapshot : (fs::path(snapshot) / selection.gguf).string();
  }

  std::string file_url(const std::string& file) const {
    return fmt::format("{}/{}/resolve/{}/{}", http_.endpoint(), name_.repository, commit_, HubHttp::escape_path(file));
  }

  // Calls `attempt` until it gives something other than 429, 5xx or a network error, waiting longer each time. `progressed` says
  // whether an attempt that failed received something: then the count of attempts starts anew.
  template <class Attempt, class Progressed>
  Result<HubResponse> with_retries(const Attempt& attempt, const Progressed& progressed) {
    int64_t delay_ms = options_.retry_delay_ms;
    for (int failures = 0;;) {
      Result<HubResponse> response = attempt();
      const bool again =
          response.is_ok() ? response->status == 429 || response->status >= 500 : response.status().code() == StatusCode::kUnavailable;
      if (!again) return response;
      if (progressed()) {
        failures = 0;
        delay_ms = options_.retry_delay_ms;
      }
      if (++failures >= options_.max_attempts) return response;
      std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
      delay_ms = std::min(delay_ms * 2, kMaxRetryDelayMs);
    }
  }

  // What a status other than success means for the user, and what to do.
  Status explain(const HubResponse& response, const std::string& what) const {
    const std::string repository = fmt::format("{}/{}", http_.endpoint(), name_.repository);
    const std::string token =
        options_.token.empty() ? "no token was sent: set HF_TOKEN to one that may read it" : "the token sent may not read it (HF_TOKEN)";
    switch (response.status) {
      case 401: return Status::not_found(fmt::format("{}: does not exist, or is private or gated, and {} (HTTP 401)", what, token));
      case 403:
        return Status::unavailable(
            fmt::format("{}: access is refused; accept the model's conditions at {}, and {} (HTTP 403)", what, repository, token));
      case 404:
        return Status::not_found(
            fmt::format("{}: the hub has no such model, revision or file (HTTP 404); check the spelling at {}", what, repository));
      case 429:
        return Status::unavailable(fmt::format("{}: the hub limits the rate of requests (HTTP 429); try later, or set HF_TOKEN", what));
      default:
        return Status::unavailable(
            fmt::format("{}: the hub answered HTTP {} {}", what, response.status, quoted_name(response.header("x-error-message"))));
    }
  }

  Status with_offline_hint(const Status& status) const {
    if (!cache_.commit_of(name_.revision)) return status;
    return {status.code(), status.message() + "; a copy is in the cache: set HF_HUB_OFFLINE=1 to use it"};
  }

  Result<json::value> list_model() {
    const std::string what = fmt::format("{}@{}", name_.repository, name_.revision);
    std::string revision = HubHttp::escape_path(name_.revision);
    for (std::size_t at = 0; (at = revision.find('/', at)) != std::string::npos;) revision.replace(at, 1, "%2F");
    const std::string url = fmt::format("{}/api/models/{}/revision/{}", http_.endpoint(), name_.repository, revision);
    const auto response = with_retries([&] { return http_.get(url, kMaxListingBytes); }, [] { return false; });
    if (!response.is_ok()) return with_offline_hint(response.status().with_context(what));
    if (response->status != 200) return with_offline_hint(explain(*response, what));
    auto listing = parse_json(response->body, {.max_depth = 32});
    if (!listing.is_ok()) return listing.status().with_context(url);
    return listing;
  }

  Result<std::vector<std::string>> file_names(const json::value& listing) {
    const auto unusable = [this](std::string_view why) {
      return Status::data_loss(fmt::format("{}: the hub's answer about {} {}", http_.endpoint(), name_.repository, why));
    };
    const json::object* model = listing.if_object();
    const json::value* sha = model ? model->if_contains("sha") : nullptr;
    const json::value* siblings = model ? model->if_contains("siblings") : nullptr;
    if (!sha || !sha->is_string() || !is_commit_id(sha->get_string())) return unusable("names no commit (\"sha\")");
    if (!siblings || !siblings->is_array()) return unusable("lists no files (\"siblings\")");
    if (siblings->get_array().size() > kMaxFiles) return unusable(fmt::format("lists more than {} files", kMaxFiles));
    commit_ = std::string(sha->get_string());
    std::vector<std::string> names;
    for (const auto& sibling : siblings->get_array()) {
      const json::object* entry = sibling.if_object();
      const json::value* file = entry ? entry->if_contains("rfilename") : nullptr;
      if (!file || !file->is_string()) return unusable("has a file without name");
      if (!is_safe_hub_path(file->get_string()))
        return unusable(fmt::format("names a file {}, which could leave its folder", quoted_name(file->get_string())));
      names.emplace_back(file->get_string());
    }
    return names;
  }

  Result<RemoteFile> describe(const std::string& file) {
    const std::string what = fmt::format("{}/{}", name_.repository, file);
    const auto response = with_retries([&] { return http_.head(file_url(file)); }, [] { return false; });
    if (!response.is_ok()) return response.status().with_context(what);
    if (response->status >= 400) return explain(*response, what);
    const auto first_of = [&](const char* linked, const char* plain) {
      return !response->header(linked).empty() ? response->header(linked) : response->header(plain);
    };
    std::string_view etag = first_of("x-linked-etag", "etag"), size = first_of("x-linked-size", "content-length");
    const std::string_view commit = response->header("x-repo-commit");
    if (!commit.empty() && commit != commit_) {
      return Status::unavailable(
          fmt::format("{}: the model changed meanwhile (commit {}, expected {}); try again", what, quoted_name(commit), commit_));
    }
    if (etag.starts_with("W/")) etag.remove_prefix(2);
    if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
    RemoteFile remote{.name = file, .id = std::string(etag)};
    if (!is_blob_id(etag))
      return Status::unavailable(fmt::format("{}: the server gives no checksum for it (ETag {})", what, quoted_name(etag)));
    const auto [end, error] = std::from_chars(size.data(), size.data() + size.size(), remote.bytes);
    if (error != std::errc() || end != size.data() + size.size() || remote.bytes < 0 || remote.bytes > kMaxFileBytes) {
      return Status::unavailable(fmt::format("{}: the server gives no usable size for it ({})", what, quoted_name(size)));
    }
    return remote;
  }

  Status check_disk(const std::vector<RemoteFile>& files) const {
    int64_t needed = 0;
    for (const auto& file : files) {
      std::error_code error;
      if (fs::exists(cache_.blob(file.id), error)) continue;
      const auto there = fs::file_size(cache_.blob(file.id) + ".incomplete", error);
      needed += file.bytes - (error ? 0 : std::min(static_cast<int64_t>(there), file.bytes));
    }
    struct statvfs disk{};
    if (needed == 0 || ::statvfs(cache_.folder().c_str(), &disk) != 0) return Status::ok();
    const auto free_bytes = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
    if (needed <= free_bytes - std::min(kDiskMarginBytes, needed)) return Status::ok();
    return Status::resource_exhausted(
        fmt::format("{}: {} still needs {:.1f} GB, but {} has {:.1f} GB free; set HF_HUB_CACHE to a folder with room", name_.repository,
                    commit_, static_cast<double>(needed) * 1e-9, cache_.folder(), static_cast<double>(free_bytes) * 1e-9));
  }

  Status fetch(const RemoteFile& file) {
    const std::string what = fmt::format("{}/{}", name_.repository, file.name);
    auto opened = BlobFile::open(cache_.blob(file.id), cache_.lock(file.id), file.id, file.bytes);
    if (!opened.is_ok()) return opened.status().with_context(what);
    BlobFile& blob = **opened;
    progress_.file = file.name;
    const int64_t done_before = progress_.done_bytes;
    const auto report = [&] {
      progress_.done_bytes = done_before + blob.received_bytes();
      return !options_.progress || options_.progress(progress_);
    };
    blob.keep_going = report;
    if (!report()) return Status::cancelled(fmt::format("{}: cancelled", what));
    int64_t received_before = 0;
    // One connection may end early without an error (a proxy's limit), so the size decides; each round must bring something.
    while (!blob.is_published() && blob.received_bytes() < file.bytes) {
      const int64_t round_start = blob.received_bytes();
      const auto response = with_retries(
          [&] {
            received_before = blob.received_bytes();
            return http_.download(file_url(file.name), blob.received_bytes(), blob);
          },
          [&] { return blob.received_bytes() > received_before; });
      if (!response.is_ok()) return response.status().with_context(what);
      if (response->status == 416) MR_RETURN_IF_ERROR(blob.begin(0));
      if (response->status != 200 && response->status != 206) return explain(*response, what);
      if (blob.received_bytes() <= round_start) return Status::unavailable(fmt::format("{}: the server sends nothing", what));
    }
    MR_RETURN_IF_ERROR(blob.publish().with_context(what));
    progress_.done_bytes = done_before + file.bytes;
    return cache_.link(commit_, file.name, file.id);
  }

  HubModelName name_;
  const HubOptions& options_;
  HubCache cache_;
  HubHttp http_;
  std::string commit_;
  HubProgress progress_;
};

}  // namespace

HubOptions HubOptions::from_environment() {
  HubOptions options;
  if (const auto endpoint = environment("HF_ENDPOINT"); !endpoint.empty()) options.endpoint = endpoint;
  const std::string cache_home = environment("XDG_CACHE_HOME"), home = environment("HF_HOME");
  const fs::path base = !home.empty()         ? fs::path(home)
                        : !cache_home.empty() ? fs::path(cache_home) / "huggingface"
                                              : fs::path(environment("HOME")) / ".cache" / "huggingface";
  const std::string cache = environment("HF_HUB_CACHE");
  options.cache_dir = cache.empty() ? (base / "hub").string() : cache;
  options.offline = is_true(environment("HF_HUB_OFFLINE"));
  options.token = environment("HF_TOKEN");
  if (options.token.empty()) {
    const std::string token_path = environment("HF_TOKEN_PATH");
    auto text = read_text_file(token_path.empty() ? (base / "token").string() : token_path, 4096);
    if (text.is_ok()) options.token = *text;
  }
  // A token is one word; a line end behind it, which editors add, would otherwise end the header it is sent in.
  const auto end = options.token.find_first_of(" \t\r\n");
  if (end != std::string::npos) options.token.resize(end);
  return options;
}

Result<std::string> resolve_model(const std::string& model, const HubOptions& options) {
  std::error_code ignored;
  if (fs::exists(model, ignored)) return model;
  if (model.empty() || model[0] == '/' || model[0] == '.' || model[0] == '~' || model.ends_with(".gguf")) {
    return Status::not_found(fmt::format("{}: no such file or directory", model));
  }
  MR_ASSIGN_OR_RETURN(const HubModelName name, parse_hub_model_name(model));
  Download download(name, options);
  return options.offline ? download.from_cache() : download.run();
}

}  // namespace millrace
