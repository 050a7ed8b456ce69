// How the tables of docs/format.md are read: keys in their order, every value within its limits, and the first fault
// under its code. A reader is a function of a value and of where it stands.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "json.hpp"

namespace edgediff::fields {

/// Where a value stands: `programs.fast.rows.3.update`. Lives as long as its value is read.
struct Where {
  const Where* above = nullptr;
  std::string_view key;
  std::size_t index = 0;  // in a list, where `key` is empty

  std::string text() const;
};

/// Throws Refused: `'programs.fast.steps': <message>`.
[[noreturn]] void refuse(const std::string& code, const Where& where, const std::string& message);

template <typename Reader>
using Read = std::invoke_result_t<Reader, const json::Value&, const Where&>;

/// A map in the order of the file.
template <typename Value>
class Map {
 public:
  using Entries = std::vector<std::pair<std::string, Value>>;

  void add(const std::string& name, Value value) {
    index_.emplace(name, entries_.size());
    entries_.emplace_back(name, std::move(value));
  }
  const Value* find(const std::string& name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &entries_[found->second].second;
  }
  bool has(const std::string& name) const { return index_.count(name) != 0; }
  std::size_t size() const { return entries_.size(); }
  typename Entries::const_iterator begin() const { return entries_.begin(); }
  typename Entries::const_iterator end() const { return entries_.end(); }

 private:
  Entries entries_;
  std::map<std::string, std::size_t> index_;
};

/// The keys of one object, in the order in which they are asked for; `done` refuses all others.
class Fields {
 public:
  /// Throws Refused `value` unless it is an object.
  Fields(const json::Value& value, const Where& where);

  /// A key that must be there.
  template <typename Reader>
  Read<Reader> need(std::string_view key, Reader reader) {
    const json::Value* value = look(key);
    const Where where{&where_, key};
    if (value == nullptr) refuse("value", where, "is missing");
    return reader(*value, where);
  }

  /// A key that may be left out, or null.
  template <typename Reader>
  std::optional<Read<Reader>> maybe(std::string_view key, Reader reader) {
    const json::Value* value = look(key);
    if (value == nullptr || value->is_null()) return std::nullopt;
    return reader(*value, Where{&where_, key});
  }

  /// A key with a default.
  template <typename Reader>
  Read<Reader> get_or(std::string_view key, Read<Reader> otherwise, Reader reader) {
    const json::Value* value = look(key);
    return value == nullptr ? std::move(otherwise) : reader(*value, Where{&where_, key});
  }

  /// Throws Refused `unknown_key` for a key that was not asked for.
  void done() const;

 private:
  const json::Value* look(std::string_view key);

  const json::Object& object_;
  const Where& where_;
  std::vector<std::string_view> known_;
};

std::string text(const json::Value& value, const Where& where);
bool flag(const json::Value& value, const Where& where);
/// A finite number of magnitude at most 1e30.
double number(const json::Value& value, const Where& where);
std::string name(const json::Value& value, const Where& where);
/// Throws `path` for a text that is no path of section 4.
std::string path(const json::Value& value, const Where& where);

/// A number from `least` to `most`; where `above`, `least` itself is refused.
double number_in(const json::Value& value, const Where& where, double least, double most, bool above = false);
/// A whole number; limits are at most 2^53.
std::int64_t whole_in(const json::Value& value, const Where& where, std::int64_t least, std::int64_t most);
std::string text_in(const json::Value& value, const Where& where, std::size_t least, std::size_t most);

inline auto whole(std::int64_t least, std::int64_t most) {
  return [=](const json::Value& value, const Where& where) { return whole_in(value, where, least, most); };
}

inline auto short_text(std::size_t least) {
  return [=](const json::Value& value, const Where& where) { return text_in(value, where, least, 200); };
}

/// How a length outside its limits is said.
void check_length(const Where& where, std::size_t length, std::size_t least, std::size_t most);

template <typename Reader>
auto list_of(Reader reader, std::size_t least, std::size_t most) {
  return [=](const json::Value& value, const Where& where) {
    const json::List* items = value.list();
    if (items == nullptr) refuse("value", where, "must be a list");
    std::vector<Read<Reader>> found;
    found.reserve(items->size());
    for (std::size_t index = 0; index < items->size(); ++index) {
      found.push_back(reader((*items)[index], Where{&where, {}, index}));
    }
    check_length(where, items->size(), least, most);
    return found;
  };
}

template <typename Reader>
auto map_of(Reader reader, std::size_t least, std::size_t most) {
  return [=](const json::Value& value, const Where& where) {
    const json::Object* entries = value.object();
    if (entries == nullptr) refuse("value", where, "must be an object");
    Map<Read<Reader>> found;
    for (const auto& [key, one] : *entries) {
      const Where place{&where, key};
      name(json::Value(key), place);
      found.add(key, reader(one, place));
    }
    check_length(where, entries->size(), least, most);
    return found;
  };
}

/// One of some words, as what it stands for.
template <typename Meant>
Meant word(const json::Value& value, const Where& where,
           const std::initializer_list<std::pair<std::string_view, Meant>> words) {
  const std::string given = text(value, where);
  const auto found = std::find_if(words.begin(), words.end(), [&given](const auto& one) { return one.first == given; });
  if (found != words.end()) return found->second;
  std::string allowed;
  for (const auto& one : words) allowed += (allowed.empty() ? "" : ", ") + std::string(one.first);
  refuse("value", where, "'" + given.substr(0, 60) + "' is unknown (allowed: " + allowed + ")");
}

}  // namespace edgediff::fields
