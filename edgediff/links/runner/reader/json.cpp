#include "json.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "errors.hpp"

namespace edgediff::json {
namespace {

constexpr int kDeepest = 32;
constexpr std::size_t kLongestNumber = 40, kLongestText = 65'536;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::uint32_t digit_of(char c) {
  if (is_digit(c)) return static_cast<std::uint32_t>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<std::uint32_t>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<std::uint32_t>(c - 'A' + 10);
  return 16;
}

void append(std::string& text, std::uint32_t point) {
  const auto tail = [&text](std::uint32_t bits) { text.push_back(static_cast<char>(0x80 | (bits & 0x3F))); };
  if (point < 0x80) {
    text.push_back(static_cast<char>(point));
  } else if (point < 0x800) {
    text.push_back(static_cast<char>(0xC0 | point >> 6));
    tail(point);
  } else if (point < 0x10000) {
    text.push_back(static_cast<char>(0xE0 | point >> 12));
    tail(point >> 6);
    tail(point);
  } else {
    text.push_back(static_cast<char>(0xF0 | point >> 18));
    tail(point >> 12);
    tail(point >> 6);
    tail(point);
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value value = any(0);
    skip_space();
    if (at_ != text_.size()) refuse("text follows the value");
    return value;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Refused("syntax", "is not JSON as a manifest may have it: byte " + std::to_string(at_) + ": " + what);
  }

  /// The next character, 0 at the end (where no 0 of the text itself is taken for anything either).
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  void take(char wanted) {
    skip_space();
    if (peek() != wanted) refuse(std::string("here must be ") + wanted);
    ++at_;
  }

  /// Whether a list or an object goes on with a comma; it ends otherwise.
  bool goes_on(char last) {
    skip_space();
    if (peek() != ',' && peek() != last) refuse(std::string("here must be , or ") + last);
    return text_[at_++] == ',';
  }

  Value any(int depth) {
    skip_space();
    switch (peek()) {
      case '{': return Value(object(depth + 1));
      case '[': return Value(list(depth + 1));
      case '"': return Value(text());
      case 't': return word("true", Value(true));
      case 'f': return word("false", Value(false));
      case 'n': return word("null", Value());
      default: return Value(number());
    }
  }

  Value word(std::string_view wanted, Value value) {
    if (text_.substr(at_, wanted.size()) != wanted) refuse("this is no value");
    at_ += wanted.size();
    return value;
  }

  void check_depth(int depth) const {
    if (depth > kDeepest) refuse("lists and objects lie in each other " + std::to_string(kDeepest) + " deep at most");
  }

  List list(int depth) {
    check_depth(depth);
    take('[');
    List items;
    skip_space();
    if (peek() == ']') {
      ++at_;
      return items;
    }
    do {
      items.push_back(any(depth));
    } while (goes_on(']'));
    return items;
  }

  Object object(int depth) {
    check_depth(depth);
    take('{');
    Object entries;
    skip_space();
    if (peek() == '}') {
      ++at_;
      return entries;
    }
    do {
      skip_space();
      if (peek() != '"') refuse("here must be a key in quotes");
      std::string key = text();
      take(':');
      entries.emplace_back(std::move(key), any(depth));
    } while (goes_on('}'));
    check_twice(entries);
    return entries;
  }

  void check_twice(const Object& entries) const {
    std::vector<std::string_view> keys;
    for (const auto& entry : entries) keys.push_back(entry.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) refuse("key '" + std::string(*twice) + "' is given twice");
  }

  std::string text() {
    std::string found;
    std::size_t characters = 0;
    for (++at_; peek() != '"'; ++characters) {
      if (at_ == text_.size()) refuse("the text has no end");
      if (characters == kLongestText) {
        refuse("a text has at most " + std::to_string(kLongestText) + " characters");
      }
      if (peek() == '\\') {
        append(found, escaped());
        continue;
      }
      const std::size_t bytes = character(text_.substr(at_));
      if (bytes == 0) refuse("this is not UTF-8");
      if (static_cast<unsigned char>(peek()) < 0x20) refuse("a control character in a text must be escaped");
      found.append(text_, at_, bytes);
      at_ += bytes;
    }
    ++at_;
    return found;
  }

  std::uint32_t escaped() {
    static constexpr std::string_view kShort = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    ++at_;
    if (peek() == 'u') return unicode();
    const std::size_t found = at_ < text_.size() ? kShort.find(peek()) : std::string_view::npos;
    if (found == std::string_view::npos) refuse("there is no such escape");
    ++at_;
    return static_cast<unsigned char>(kMeant[found]);
  }

  std::uint32_t unicode() {
    const std::uint32_t first = four_digits();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || text_.substr(at_, 2) != "\\u") refuse("half a surrogate pair is no character");
    ++at_;
    const std::uint32_t second = four_digits();
    if (second < 0xDC00 || second > 0xDFFF) refuse("half a surrogate pair is no character");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  /// After \u, whose u it stands on.
  std::uint32_t four_digits() {
    std::uint32_t point = 0;
    for (int count = 0; count < 4; ++count) {
      ++at_;
      const std::uint32_t digit = digit_of(peek());
      if (digit == 16) refuse("an escape has four hexadecimal digits");
      point = point * 16 + digit;
    }
    ++at_;
    return point;
  }

  void digits() {
    if (!is_digit(peek())) refuse(at_ == text_.size() ? "the text ends too early" : "this is no value");
    while (is_digit(peek())) ++at_;
  }

  Number number() {
    const std::size_t start = at_;
    bool whole = true;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    if (peek() == '.') {
      whole = false;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const std::size_t size = at_ - start;
    if (size > kLongestNumber) refuse("a number has at most " + std::to_string(kLongestNumber) + " characters");
    std::array<char, kLongestNumber + 1> copy{};
    text_.copy(copy.data(), size, start);
    const double value = std::strtod(copy.data(), nullptr);  // the runner never leaves the C locale
    if (!std::isfinite(value)) refuse("the number is too large");
    return {value, whole};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Value* find(const Object& object, std::string_view key) {
  const auto found =
      std::find_if(object.begin(), object.end(), [key](const auto& entry) { return entry.first == key; });
  return found == object.end() ? nullptr : &found->second;
}

Value parse(std::string_view text) { return Parser(text).document(); }

std::size_t character(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < bytes) return 0;
  // The second byte's range leaves out longer forms than needed, surrogates and what lies beyond Unicode.
  const unsigned char least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned char most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < least || byte(1) > most) return 0;
  for (std::size_t index = 2; index < bytes; ++index) {
    if ((byte(index) & 0xC0) != 0x80) return 0;
  }
  return bytes;
}

std::size_t length(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace edgediff::json
