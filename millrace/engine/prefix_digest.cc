#include "millrace/engine/prefix_digest.h"

#include <openssl/evp.h>

#include "millrace/base/check.h"

namespace millrace {
namespace {

// One context a thread: looking the algorithm up for every digest would cost more than the digest.
class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free), md_(EVP_MD_fetch(nullptr, "SHA256", nullptr), &EVP_MD_free) {
    MR_CHECK(context_ != nullptr && md_ != nullptr, "OpenSSL has no SHA-256");
  }

  BlockDigest operator()(const void* data, std::size_t size_bytes) {
    BlockDigest digest;
    unsigned int written = 0;
    const bool done = EVP_DigestInit_ex(context_.get(), md_.get(), nullptr) == 1 &&
                      EVP_DigestUpdate(context_.get(), data, size_bytes) == 1 &&
                      EVP_DigestFinal_ex(context_.get(), digest.bytes.data(), &written) == 1;
    MR_CHECK(done && written == digest.bytes.size(), "SHA-256 failed");
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
  std::unique_ptr<EVP_MD, void (*)(EVP_MD*)> md_;
};

BlockDigest sha256(const void* data, std::size_t size_bytes) {
  thread_local Sha256 hash;
  return hash(data, size_bytes);
}

}  // namespace

BlockDigest PrefixHasher::root(std::string_view salt, bool rope_long) const {
  // The secret's digest has one length, so secret and salt cannot run into each other.
  const BlockDigest secret = sha256(secret_.data(), secret_.size());
  std::string text(reinterpret_cast<const char*>(secret.bytes.data()), secret.bytes.size());
  text += rope_long ? 'L' : 'S';
  text += salt;
  return sha256(text.data(), text.size());
}

BlockDigest PrefixHasher::next(const BlockDigest& parent, std::span<const int32_t, kKvBlockTokens> tokens, int32_t num_prompt_tokens) {
  std::array<uint8_t, sizeof(BlockDigest::bytes) + (kKvBlockTokens + 1) * sizeof(int32_t)> text;
  std::memcpy(text.data(), parent.bytes.data(), parent.bytes.size());
  std::memcpy(text.data() + parent.bytes.size(), tokens.data(), tokens.size_bytes());
  std::memcpy(text.data() + parent.bytes.size() + tokens.size_bytes(), &num_prompt_tokens, sizeof num_prompt_tokens);
  return sha256(text.data(), text.size());
}

}  // namespace millrace
