#include "fields.hpp"

#include <cmath>
#include <sstream>

#include "errors.hpp"

namespace edgediff::fields {
namespace {

constexpr double kLargest = 1e30;
constexpr std::size_t kLongestName = 200, kLongestPath = 400;

std::string shown(double value) {
  std::ostringstream out;
  out.precision(17);
  out << value;
  return out.str();
}

const json::Number& as_number(const json::Value& value, const Where& where) {
  const json::Number* number = value.number();
  if (number == nullptr) refuse("value", where, "must be a number");
  return *number;
}

bool is_of_path(char c) {
  const bool letter = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
  return letter || std::string_view("._+-/@").find(c) != std::string_view::npos;
}

/// Whether no part between slashes is empty, `.` or `..`.
bool stays_inside(std::string_view path) {
  while (true) {
    const std::size_t end = path.find('/');
    const std::string_view part = path.substr(0, end);
    if (part.empty() || part == "." || part == "..") return false;
    if (end == std::string_view::npos) return true;
    path.remove_prefix(end + 1);
  }
}

}  // namespace

std::string Where::text() const {
  const std::string own = key.data() == nullptr ? std::to_string(index) : std::string(key);
  return above == nullptr || above->above == nullptr ? own : above->text() + "." + own;
}

void refuse(const std::string& code, const Where& where, const std::string& message) {
  throw Refused(code, where.above == nullptr ? message : "'" + where.text() + "': " + message);
}

Fields::Fields(const json::Value& value, const Where& where)
    : object_([&]() -> const json::Object& {
        const json::Object* object = value.object();
        if (object == nullptr) refuse("value", where, "must be an object");
        return *object;
      }()),
      where_(where) {}

const json::Value* Fields::look(std::string_view key) {
  known_.push_back(key);
  return json::find(object_, key);
}

void Fields::done() const {
  for (const auto& entry : object_) {
    if (std::find(known_.begin(), known_.end(), entry.first) != known_.end()) continue;
    std::string known;
    for (const std::string_view one : known_) known += (known.empty() ? "" : ", ") + std::string(one);
    refuse("unknown_key", Where{&where_, entry.first}, "is an unknown key (known here: " + known + ")");
  }
}

std::string text(const json::Value& value, const Where& where) {
  const std::string* text = value.text();
  if (text == nullptr) refuse("value", where, "must be a text");
  return *text;
}

bool flag(const json::Value& value, const Where& where) {
  const bool* flag = value.boolean();
  if (flag == nullptr) refuse("value", where, "must be true or false");
  return *flag;
}

double number(const json::Value& value, const Where& where) { return number_in(value, where, -kLargest, kLargest); }

double number_in(const json::Value& value, const Where& where, double least, double most, bool above) {
  const double number = as_number(value, where).value;
  if (number > most || number < least || (above && number == least)) {
    refuse("value", where,
           "must be a number " + std::string(above ? "above " : "from ") + shown(least) + " to " + shown(most) +
               ", not " + shown(number));
  }
  return number;
}

std::int64_t whole_in(const json::Value& value, const Where& where, std::int64_t least, std::int64_t most) {
  const json::Number& number = as_number(value, where);
  if (!number.whole || number.value < static_cast<double>(least) || number.value > static_cast<double>(most)) {
    refuse("value", where,
           "must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
               ", without fraction and exponent");
  }
  return static_cast<std::int64_t>(number.value);
}

std::string text_in(const json::Value& value, const Where& where, std::size_t least, std::size_t most) {
  std::string found = text(value, where);
  const std::size_t length = json::length(found);
  if (length < least || length > most) {
    refuse("value", where,
           "must have " + std::to_string(least) + " to " + std::to_string(most) + " characters, not " +
               std::to_string(length));
  }
  return found;
}

std::string name(const json::Value& value, const Where& where) {
  std::string found = text_in(value, where, 1, kLongestName);
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7F; };
  if (std::any_of(found.begin(), found.end(), is_control)) refuse("value", where, "a name has no control characters");
  return found;
}

std::string path(const json::Value& value, const Where& where) {
  std::string found = text(value, where);
  if (found.size() > kLongestPath || !std::all_of(found.begin(), found.end(), is_of_path)) {
    refuse("path", where, "a path in a bundle has 1 to 400 characters of A-Z a-z 0-9 . _ + - / @");
  }
  if (!stays_inside(found)) {
    refuse("path", where,
           "'" + found +
               "' must be relative, with one slash between its parts, none of them . or .., to stay inside "
               "the bundle");
  }
  return found;
}

void check_length(const Where& where, std::size_t length, std::size_t least, std::size_t most) {
  if (length >= least && length <= most) return;
  refuse(
      "value", where,
      "must have " + std::to_string(least) + " to " + std::to_string(most) + " items, not " + std::to_string(length));
}

}  // namespace edgediff::fields
