// JSON by section 2 of docs/format.md: its own grammar and no more, with the limits that every reader has.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace edgediff::json {

class Value;

/// `whole`: written without fraction and exponent. Whole numbers up to 2^53 are exact, and larger ones stay larger.
struct Number {
  double value;
  bool whole;
};

using List = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in the order of the text, no key twice

class Value {
 public:
  using Held = std::variant<std::nullptr_t, bool, Number, std::string, List, Object>;

  Value() = default;
  explicit Value(Held held) : held_(std::move(held)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(held_); }
  const bool* boolean() const { return std::get_if<bool>(&held_); }
  const Number* number() const { return std::get_if<Number>(&held_); }
  const std::string* text() const { return std::get_if<std::string>(&held_); }
  const List* list() const { return std::get_if<List>(&held_); }
  const Object* object() const { return std::get_if<Object>(&held_); }

 private:
  Held held_ = nullptr;
};

/// The value of a key, nullptr where the object has no such key.
const Value* find(const Object& object, std::string_view key);

/// Reads a whole text. Throws Refused `syntax`, naming the byte.
Value parse(std::string_view text);

/// Bytes of the UTF-8 character that `text` begins with; 0 for anything that is none.
std::size_t character(std::string_view text);

/// Characters (code points) of a text in sound UTF-8.
std::size_t length(std::string_view text);

}  // namespace edgediff::json
