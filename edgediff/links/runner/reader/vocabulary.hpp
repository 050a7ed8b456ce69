// The files of a CLIP tokenizer, as section 6 of docs/format.md wants them. Texts become ids on the host.
#pragma once

#include <cstdint>
#include <filesystem>

#include "manifest.hpp"

namespace edgediff {

struct SpecialIds {
  std::int64_t begin = 0, end = 0, pad = 0;
};

/// Reads vocab.json and merges.txt of a bundle's folder. Throws Refused `tokenizer`, naming the file.
SpecialIds read_tokenizer(const std::filesystem::path& folder, const Tokenizer& tokenizer);

}  // namespace edgediff
