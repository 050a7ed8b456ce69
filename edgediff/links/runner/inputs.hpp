// What a picture is made from.
#pragma once

#include <filesystem>
#include <vector>

#include "manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

/// `latent` [1, *latent] is x_0, scaled already; `noise` the draws of the rows that add some, in order; `ids` one row
/// of token ids for each prompt, `classes` one class for each: negative first, the negative left out where no row is
/// guided.
struct Inputs {
  Tensor latent;
  std::vector<Tensor> noise;
  std::vector<Tensor> ids;
  std::vector<float> classes;
};

/// The file of `--inputs`. Throws BadInput for a tensor that no picture is made from.
Tensors read_inputs(const std::filesystem::path& file);

/// What `given` has, and for the rest: latent and noise drawn from a generator of its own (a seed of edgediff draws
/// others), the golden file's prompt, class 0. Throws BadInput for shapes that the program cannot use.
Inputs make_inputs(const Manifest& manifest, const std::filesystem::path& folder, const Tensors& given, unsigned seed);

}  // namespace edgediff
