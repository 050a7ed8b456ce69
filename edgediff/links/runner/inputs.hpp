// What a picture is made from: what the caller gives beside a seed.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "reader/manifest.hpp"
#include "reader/vocabulary.hpp"
#include "tensor.hpp"

namespace edgediff {

/// Ids `[1, length]` and the mask over them, 1 up to the first end token.
struct TextIds {
  Tensor ids, mask;
  bool is_empty = false;  // the empty text
};

/// `latent` stands in for x_0, `noise` for its standard normal draw, both [1, *latent]. `texts` by encoder: the
/// negative prompt, the prompt. `picture` [3, H, W] in [-1, 1]; `mask` [H, W] of 0 and 1. `guidance` is the scale that
/// is asked.
struct Inputs {
  std::optional<Tensor> latent, noise, picture, mask;
  std::map<std::string, std::pair<TextIds, TextIds>> texts;
  float class_label = 0;
  std::optional<double> guidance;
};

/// Encoders that the program's conditions name, in the order of first use.
std::vector<std::string> used_encoders(const Manifest& manifest, const Program& program);

/// Reads the file of `--inputs` (none: the golden file's prompt, class 0). Throws Refused under the code of what is
/// missing, not taken, or of another size (section 3 of docs/format.md), BadInput for a tensor that it does not know.
Inputs read_inputs(const Manifest& manifest, const Program& program, const std::filesystem::path& bundle,
                   const std::optional<std::filesystem::path>& file, const std::optional<double>& guidance);

}  // namespace edgediff
