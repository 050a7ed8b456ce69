// Messages that hold what a file says, as one line of text.
#pragma once

#include <string>
#include <string_view>

namespace edgediff {

/// Control characters and bytes that are no UTF-8 as `\x1f`; at most 1,000 characters.
std::string printable(std::string_view message);

}  // namespace edgediff
