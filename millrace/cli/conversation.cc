#include "millrace/cli/conversation.h"

#include <chrono>

namespace millrace::cli {

Result<std::vector<int32_t>> conversation_tokens(const LoadedModel& model, const json::array& messages) {
  MR_ASSIGN_OR_RETURN(const ChatTemplate* chat_template, model.chat_template());
  MR_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, model.tokenizer());
  ChatTemplateInput input;
  input.messages = messages;
  input.bos_token = model.bos_token();
  input.eos_token = model.eos_token();
  auto rendered = chat_template->render(input);
  if (!rendered.is_ok()) return rendered.status().with_context("chat template");
  return tokenizer->encode(rendered->text, {.add_special_tokens = false, .plain_ranges = rendered->user_ranges});
}

Result<Completion> complete(Engine& engine, GenerationRequest request, const std::function<void(std::string_view)>& on_text,
                            const std::function<bool()>& interrupted) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::string pending;
    bool finished = false;
    Completion completion;
    Status error;
  };
  const auto shared = std::make_shared<Shared>();
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [start] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  auto id = engine.add(std::move(request), [shared](OutputDelta& delta) {
    const std::lock_guard lock(shared->mutex);
    shared->pending += delta.text;
    shared->completion.usage = delta.usage;
    if (!delta.prompt_logprobs.empty()) shared->completion.prompt_logprobs = std::move(delta.prompt_logprobs);
    if (delta.finish_reason) shared->completion.finish_reason = *delta.finish_reason;
    if (!delta.error.is_ok()) shared->error = delta.error;
    shared->finished |= delta.request_finished;
    shared->changed.notify_one();
  });
  if (!id.is_ok()) return id.status();
  std::unique_lock lock(shared->mutex);
  bool cancelled = false;
  for (bool finished = false; !finished;) {
    shared->changed.wait_for(lock, std::chrono::milliseconds(50), [&] { return !shared->pending.empty() || shared->finished; });
    finished = shared->finished;
    std::string text;
    text.swap(shared->pending);
    shared->completion.text += text;
    lock.unlock();
    if (!text.empty()) {
      if (shared->completion.ttft_seconds == 0) shared->completion.ttft_seconds = elapsed();
      on_text(text);
    }
    if (!cancelled && interrupted && interrupted()) {
      cancelled = true;
      engine.cancel(*id);
    }
    lock.lock();
  }
  shared->completion.seconds = elapsed();
  if (!shared->error.is_ok()) return shared->error;
  return std::move(shared->completion);
}

}  // namespace millrace::cli
