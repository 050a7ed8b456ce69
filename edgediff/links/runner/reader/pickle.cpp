#include "pickle.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string_view>

#include "json.hpp"

namespace edgediff {
namespace {

constexpr std::size_t kHead = 4096;
constexpr int kEnough = 8;  // weights may begin like a pickle by chance, but not go on with so many opcodes

constexpr std::array<std::string_view, 5> kSuffixes = {".pt", ".pth", ".pkl", ".pickle", ".ckpt"};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::uint64_t little(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t index = bytes.size(); index-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[index]);
  return value;
}

bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0x80) != 0; });
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return text;
}

bool is_whole(std::string_view text) {
  text = trimmed(text);
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

bool is_real(std::string_view text) {
  const std::string copy(trimmed(text));
  char* end = nullptr;
  std::strtod(copy.c_str(), &end);
  return !copy.empty() && *end == '\0' && copy.find_first_of("xX") == std::string::npos;
}

/// UTF-8, in which a pickle may also write half a surrogate pair.
bool is_text(std::string_view text) {
  while (!text.empty()) {
    const bool half = text.size() > 2 && text[0] == '\xED' && (text[1] & 0xE0) == 0xA0 && (text[2] & 0xC0) == 0x80;
    const std::size_t bytes = half ? 3 : json::character(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

/// Goes through opcodes and their arguments, as `pickletools.genops` does.
class Opcodes {
 public:
  explicit Opcodes(std::string_view bytes) : rest_(bytes) {}

  bool are_a_pickle() {
    for (int count = 1;; ++count) {
      const auto opcode = take(1);
      if (!opcode || !argument(opcode->front())) return false;
      if (count == kEnough || opcode->front() == '.') return true;
    }
  }

 private:
  std::optional<std::string_view> take(std::uint64_t size) {
    if (size > rest_.size()) return std::nullopt;
    const std::string_view taken = rest_.substr(0, static_cast<std::size_t>(size));
    rest_.remove_prefix(taken.size());
    return taken;
  }

  /// A count of `size` bytes, then so many bytes.
  std::optional<std::string_view> counted(std::size_t size, bool is_signed = false) {
    const auto count = take(size);
    if (!count || (is_signed && (count->back() & 0x80) != 0)) return std::nullopt;
    return take(little(*count));
  }

  std::optional<std::string_view> line() {
    const std::size_t end = rest_.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view found = *take(end + 1);
    return found.substr(0, end);
  }

  bool quoted() {
    const auto text = line();
    if (!text || text->size() < 2 || !is_ascii(*text)) return false;
    return (text->front() == '"' || text->front() == '\'') && text->back() == text->front();
  }

  bool plain() {
    const auto text = line();
    return text && is_ascii(*text);
  }

  bool whole(bool is_long) {
    auto text = line();
    if (text && is_long && ends_with(*text, "L")) text->remove_suffix(1);
    return text && is_whole(*text);
  }

  bool real() {
    const auto text = line();
    return text && is_real(*text);
  }

  static bool sound(const std::optional<std::string_view>& text) { return text && is_text(*text); }

  /// Reads what follows an opcode; false for an opcode that does not exist and for a broken argument.
  bool argument(char opcode) {
    static constexpr std::string_view kBare =
        "N]ael)t}dsu02(1RboQ.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98";
    if (kBare.find(opcode) != std::string_view::npos) return true;
    switch (opcode) {
      case 'K':
      case 'h':
      case 'q':
      case '\x80':
      case '\x82': return take(1).has_value();
      case 'M':
      case '\x83': return take(2).has_value();
      case 'J':
      case 'j':
      case 'r':
      case '\x84': return take(4).has_value();
      case 'G':
      case '\x95': return take(8).has_value();
      case 'I':
      case 'g':
      case 'p': return whole(false);
      case 'L': return whole(true);
      case 'F': return real();
      case 'S': return quoted();
      case 'V': return line().has_value();
      case 'P': return plain();
      case 'c':
      case 'i': return plain() && plain();
      case 'C':
      case 'U':
      case '\x8a': return counted(1).has_value();
      case 'T':
      case '\x8b': return counted(4, true).has_value();
      case 'B': return counted(4).has_value();
      case '\x8e':
      case '\x96': return counted(8).has_value();
      case '\x8c': return sound(counted(1));
      case 'X': return sound(counted(4));
      case '\x8d': return sound(counted(8));
      default: return false;
    }
  }

  std::string_view rest_;
};

std::string read_at(std::ifstream& stream, std::uint64_t place, std::size_t size) {
  std::string bytes(size, '\0');
  stream.clear();
  stream.seekg(static_cast<std::streamoff>(place));
  stream.read(bytes.data(), static_cast<std::streamsize>(size));
  bytes.resize(static_cast<std::size_t>(std::max<std::streamsize>(stream.gcount(), 0)));
  return bytes;
}

/// Where a zip's list of names is, and how long.
struct Names {
  std::uint64_t place = 0, size = 0;
};

std::optional<Names> find_names(std::ifstream& stream, std::uint64_t size) {
  constexpr std::uint64_t kEnd = 22, kLongestComment = 1 << 16, kLocator = 20, kEnd64 = 56;
  const std::uint64_t start = size - std::min(size, kEnd + kLongestComment);
  const std::string tail = read_at(stream, start, static_cast<std::size_t>(size - start));
  const std::size_t found = tail.rfind("PK\5\6");
  if (found == std::string::npos || tail.size() - found < kEnd) return std::nullopt;
  std::uint64_t place = start + found, listed = little(std::string_view(tail).substr(found + 12, 4));
  if (place >= kLocator + kEnd64 && read_at(stream, place - kLocator, 4) == "PK\6\7") {
    const std::string more = read_at(stream, place - kLocator - kEnd64, kEnd64);
    if (more.size() == kEnd64 && more.compare(0, 4, "PK\6\6") == 0) {
      listed = little(std::string_view(more).substr(40, 8));
      place -= kLocator + kEnd64;
    }
  }
  if (listed > place) return std::nullopt;
  return Names{place - listed, listed};
}

/// Whether a zip holds a file of this name, in whatever folder.
bool zip_holds(std::ifstream& stream, std::uint64_t size, std::string_view wanted) {
  constexpr std::size_t kEntry = 46;
  const auto names = find_names(stream, size);
  if (!names) return false;
  for (std::uint64_t at = 0; at + kEntry <= names->size;) {
    const std::string entry = read_at(stream, names->place + at, kEntry);
    if (entry.size() < kEntry || entry.compare(0, 4, "PK\1\2") != 0) return false;
    const auto length = [&entry](std::size_t where) { return little(std::string_view(entry).substr(where, 2)); };
    const std::string name = read_at(stream, names->place + at + kEntry, static_cast<std::size_t>(length(28)));
    if (std::string_view(name).substr(name.rfind('/') + 1) == wanted) return true;
    at += kEntry + length(28) + length(30) + length(32);
  }
  return false;
}

}  // namespace

bool is_pickle(const std::filesystem::path& file, const std::string& path) {
  std::string lower = path;
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (std::any_of(kSuffixes.begin(), kSuffixes.end(), [&lower](auto end) { return ends_with(lower, end); }))
    return true;
  std::ifstream stream(file, std::ios::binary);
  const std::string head = read_at(stream, 0, kHead);
  if (head.compare(0, 4, "PK\3\4") == 0) return zip_holds(stream, std::filesystem::file_size(file), "data.pkl");
  if (head.size() < 2 || head[0] != '\x80' || head[1] < 2 || head[1] > 5) return false;
  return Opcodes(head).are_a_pickle();
}

}  // namespace edgediff
