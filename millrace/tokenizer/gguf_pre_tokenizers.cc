#include "millrace/tokenizer/gguf_pre_tokenizers.h"

namespace millrace {
namespace {

constexpr std::string_view kDefault =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[\\p{P}\\$\\+<=>\\^~\\|]+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\p{N}+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"[0-9][0-9][0-9]"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kGpt2 =
    R"json({"type":"ByteLevel","add_prefix_space":false,"use_regex":true})json";
constexpr std::string_view kLlamaBpe =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kQwen2 =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kQwen35 =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kSmollm =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]})json";
constexpr std::string_view kFalcon =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Punctuation","behavior":"Contiguous"},{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},{"type":"Digits","individual_digits":false},{"type":"Split","pattern":{"Regex":"[0-9][0-9][0-9]"},"behavior":"Isolated","invert":false}]})json";
constexpr std::string_view kDeepseekLlm =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[\r\n]"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\s?[!-/:-~！-／：-～‘-‟　-。]+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\s+$"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"[一-龥ࠀ-一가-퟿]+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kDeepseekCoder =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[\r\n]"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\s?\\p{L}+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"\\s?\\p{P}+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"[一-龥ࠀ-一가-퟿]+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kDeepseekV3 =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"[一-龥぀-ゟ゠-ヿ]+"},"behavior":"Isolated","invert":false},{"type":"Split","pattern":{"Regex":"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kGpt4o =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kTekken =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kBloom =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?[^(\\s|.,!?…。，、।۔،)]+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";
constexpr std::string_view kViking =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?[^(\\s|.,!?…。，、।۔،)]+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})json";

// The names are llama.cpp's (2026); the parts are those of the models' own tokenizer.json. A name that is not here is refused,
// because a wrong pre-tokenizer gives plausible and worse text.
constexpr GgufPreTokenizer kPreTokenizers[] = {
    {"default", "", kDefault, false, false},
    {"gpt-2", "", kGpt2, false, false},
    {"phi-2", "", kGpt2, false, false},
    {"jina-es", "", kGpt2, false, false},
    {"jina-de", "", kGpt2, false, false},
    {"jina-v2-es", "", kGpt2, false, false},
    {"jina-v2-de", "", kGpt2, false, false},
    {"olmo", "", kGpt2, false, false},
    {"jais", "", kGpt2, false, false},
    {"trillion", "", kGpt2, false, false},
    {"mpt", "{\"type\": \"NFC\"}", kGpt2, false, false},
    {"llama-bpe", "", kLlamaBpe, true, true},
    {"llama3", "", kLlamaBpe, true, true},
    {"llama-v3", "", kLlamaBpe, true, true},
    {"falcon3", "", kLlamaBpe, true, true},
    {"pixtral", "", kLlamaBpe, true, true},
    {"dbrx", "", kLlamaBpe, false, false},
    {"smaug-bpe", "", kLlamaBpe, false, false},
    {"chatglm-bpe", "", kLlamaBpe, false, false},
    {"glm4", "", kLlamaBpe, false, false},
    {"qwen2", "{\"type\": \"NFC\"}", kQwen2, false, false},
    {"deepseek-r1-qwen", "{\"type\": \"NFC\"}", kQwen2, false, false},
    {"stablelm2", "{\"type\": \"NFC\"}", kQwen2, false, false},
    {"hunyuan", "{\"type\": \"NFC\"}", kQwen2, false, false},
    {"megrez", "{\"type\": \"NFC\"}", kQwen2, false, false},
    {"qwen35", "", kQwen35, false, false},
    {"smollm", "", kSmollm, false, false},
    {"starcoder", "", kSmollm, false, false},
    {"refact", "", kSmollm, false, false},
    {"codeshell", "", kSmollm, false, false},
    {"exaone", "", kSmollm, false, false},
    {"minerva-7b", "", kSmollm, false, false},
    {"command-r", "{\"type\": \"NFC\"}", kSmollm, false, false},
    {"falcon", "", kFalcon, false, false},
    {"deepseek-llm", "", kDeepseekLlm, false, false},
    {"deepseek-coder", "", kDeepseekCoder, false, false},
    {"deepseek-v3", "", kDeepseekV3, false, false},
    {"hunyuan-dense", "", kDeepseekV3, false, false},
    {"gpt-4o", "", kGpt4o, false, false},
    {"llama4", "", kGpt4o, false, false},
    {"tekken", "", kTekken, true, false},
    {"bloom", "", kBloom, false, false},
    {"poro-chat", "", kBloom, false, false},
    {"gpt3-finnish", "", kBloom, false, false},
    {"viking", "", kViking, false, false},
};

}  // namespace

const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name) {
  if (name.empty()) name = "default";
  for (const GgufPreTokenizer& known : kPreTokenizers) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

}  // namespace millrace
