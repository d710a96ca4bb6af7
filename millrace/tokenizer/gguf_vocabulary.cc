#include "millrace/tokenizer/pipeline.h"
namespace millrace {
Result<std::shared_ptr<const TokenizerPipeline>> translate_gguf_vocabulary(GgufVocabulary vocabulary) {
  return Status::unsupported("tokenizer.ggml.model \"" + vocabulary.model + "\"");
}
}  // namespace millrace
