// Many manifests one after the other, for the comparison of readers.
#pragma once

#include <iosfwd>

namespace edgediff {

/// Reads frames: a decimal count of bytes, a newline, then that many bytes, one manifest. Answers each with a line,
/// `ok` or the code. Throws BadInput for a broken frame.
void read_manifests(std::istream& in, std::ostream& out);

}  // namespace edgediff
