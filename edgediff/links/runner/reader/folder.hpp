// A bundle's folder: its manifest, and every file beside it (step 1 and 6 of section 2 of docs/format.md).
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "manifest.hpp"

namespace edgediff {

/// `hashes`: whether the SHA-256 of every file is compared. `pushed_for`: a backend; files that only others need may be
/// missing, as they are on a device.
struct FolderCheck {
  bool hashes = true;
  std::optional<std::string> pushed_for;
};

/// The manifest of a folder that is a sound bundle. Throws Refused.
Manifest open_bundle(const std::filesystem::path& folder, const FolderCheck& check);

}  // namespace edgediff
