#include "printable.hpp"

#include "json.hpp"

namespace edgediff {
namespace {

constexpr int kLongest = 1000;

}  // namespace

std::string printable(std::string_view message) {
  static constexpr const char* kDigits = "0123456789abcdef";
  std::string shown;
  for (int characters = 0; !message.empty(); ++characters) {
    if (characters == kLongest) return shown + "...";
    const std::size_t bytes = json::character(message);
    const auto first = static_cast<unsigned char>(message[0]);
    if (bytes == 0 || first < 0x20 || first == 0x7F) {
      shown.append("\\x").append({kDigits[first >> 4], kDigits[first & 0xF]});
      message.remove_prefix(1);
    } else {
      shown.append(message.substr(0, bytes));
      message.remove_prefix(bytes);
    }
  }
  return shown;
}

}  // namespace edgediff
