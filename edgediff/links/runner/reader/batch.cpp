#include "batch.hpp"

#include <iostream>
#include <string>

#include "errors.hpp"
#include "manifest.hpp"

namespace edgediff {
namespace {

constexpr std::size_t kLongestCount = 10;  // digits; a manifest has at most 16 MiB

std::string verdict(const std::string& text) {
  try {
    read_manifest(text);
    return "ok";
  } catch (const Refused& error) {
    return error.code;
  }
}

}  // namespace

void read_manifests(std::istream& in, std::ostream& out) {
  for (std::string count; std::getline(in, count);) {
    const bool sound = !count.empty() && count.find_first_not_of("0123456789") == std::string::npos;
    if (!sound || count.size() > kLongestCount)
      throw BadInput("a frame must begin with a count of bytes and a newline");
    std::string text(std::stoull(count), '\0');
    if (!in.read(text.data(), static_cast<std::streamsize>(text.size()))) throw BadInput("the last frame is cut off");
    out << verdict(text) << std::endl;
  }
}

}  // namespace edgediff
