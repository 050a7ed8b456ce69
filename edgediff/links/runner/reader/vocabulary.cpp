#include "vocabulary.hpp"

#include <fstream>
#include <set>
#include <string_view>

#include "errors.hpp"
#include "json.hpp"

namespace edgediff {
namespace {

constexpr double kLargestId = 1 << 24;

using Vocabulary = std::map<std::string, std::int64_t, std::less<>>;

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& message) {
  throw Refused("tokenizer", file.string() + ": " + message);
}

std::string contents(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) refuse(file, "cannot be read");
  return text;
}

Vocabulary read_vocabulary(const std::filesystem::path& file) {
  json::Value value;
  try {
    value = json::parse(contents(file));
  } catch (const Refused& error) {
    refuse(file, error.what());
  }
  const json::Object* object = value.object();
  if (object == nullptr) refuse(file, "must be one object, of each token's id");
  Vocabulary vocabulary;
  std::set<std::int64_t> ids;
  for (const auto& [token, one] : *object) {
    const json::Number* id = one.number();
    if (id == nullptr || !id->whole || id->value < 0 || id->value > kLargestId) {
      refuse(file, "the id of token '" + token + "' must be a whole number from 0 to 2^24");
    }
    if (!ids.insert(static_cast<std::int64_t>(id->value)).second) {
      refuse(file, "token '" + token + "' has the id of another one; every token needs its own");
    }
    vocabulary.emplace(token, static_cast<std::int64_t>(id->value));
  }
  return vocabulary;
}

void check_merge(const std::filesystem::path& file, std::string_view line, const Vocabulary& vocabulary) {
  const std::size_t space = line.find(' ');
  const bool two = space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos;
  const std::string_view first = line.substr(0, space), second = two ? line.substr(space + 1) : std::string_view();
  if (!two || first.empty() || second.empty()) {
    refuse(file, "the line '" + std::string(line.substr(0, 40)) + "' must be two tokens and one space");
  }
  const std::string joined = std::string(first).append(second);
  for (const std::string_view token : {first, second, std::string_view(joined)}) {
    if (vocabulary.find(token) == vocabulary.end()) {
      refuse(file, "merges '" + std::string(token) + "', which the vocabulary does not have");
    }
  }
}

void check_merges(const std::filesystem::path& file, const Vocabulary& vocabulary) {
  const std::string text = contents(file);
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t bytes = json::character(rest);
    if (bytes == 0) refuse(file, "is not UTF-8");
    rest.remove_prefix(bytes);
  }
  if (text.find('\r') != std::string::npos) refuse(file, "has a carriage return; \\n alone ends a line");
  std::string_view rest = text;
  bool first = true;
  while (!rest.empty()) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (!first || line.substr(0, 8) != "#version") check_merge(file, line, vocabulary);
    first = false;
  }
}

/// The one id of a special token.
std::int64_t find_id(const std::filesystem::path& file, const Tokenizer& tokenizer, const Vocabulary& vocabulary,
                     const std::string& token) {
  const std::vector<std::int64_t>* ids = nullptr;
  for (const Added& added : tokenizer.added) {
    if (added.content == token) ids = &added.ids;
  }
  if (ids != nullptr && ids->size() == 1) return ids->front();
  const auto found = vocabulary.find(token);
  if (ids == nullptr && found != vocabulary.end()) return found->second;
  refuse(file, "'" + token + "' must be one token, of the vocabulary or added to it");
}

}  // namespace

SpecialIds read_tokenizer(const std::filesystem::path& folder, const Tokenizer& tokenizer) {
  const std::filesystem::path file = folder / tokenizer.vocab;
  const Vocabulary vocabulary = read_vocabulary(file);
  check_merges(folder / tokenizer.merges, vocabulary);
  const auto find = [&](const std::string& token) { return find_id(file, tokenizer, vocabulary, token); };
  const SpecialIds ids{find(tokenizer.begin), find(tokenizer.end), find(tokenizer.pad)};
  if (vocabulary.count(tokenizer.unknown) == 0) refuse(file, "'" + tokenizer.unknown + "' must be in the vocabulary");
  return ids;
}

}  // namespace edgediff
