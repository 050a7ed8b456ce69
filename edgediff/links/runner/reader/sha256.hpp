// SHA-256 (FIPS 180-4).
#pragma once

#include <filesystem>
#include <string>

namespace edgediff {

/// 64 hexadecimal digits of a file's bytes, which are read piece by piece. Throws BadInput for a file that cannot be
/// read.
std::string sha256(const std::filesystem::path& file);

}  // namespace edgediff
