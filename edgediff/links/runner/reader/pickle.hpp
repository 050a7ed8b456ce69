// Pickles, which can run code and which no bundle holds.
#pragma once

#include <filesystem>
#include <string>

namespace edgediff {

/// Whether a file is a pickle: by its name, by a beginning of protocol 2 to 5 that goes on with opcodes, or as a zip
/// that holds a `data.pkl`. `path` is its name in the bundle.
bool is_pickle(const std::filesystem::path& file, const std::string& path);

}  // namespace edgediff
