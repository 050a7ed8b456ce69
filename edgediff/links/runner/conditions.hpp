// What the graphs of a program read beside latent, time and carries: worked out once for a picture.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "inputs.hpp"
#include "reader/manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

/// Runs a graph once at batch 1: inputs by name in, outputs by name out, all finite.
using RunOnce = std::function<Tensors(const std::string& graph, const Tensors& inputs)>;

/// The values of an input, [1, ...] each.
struct Sides {
  Tensor empty, prompt;
};

/// The picture's latent y, the masked picture's, and the latent's mask [1, 1, h, w]; empty where they are not needed.
struct Pictures {
  Tensor latent, masked, mask;
};

/// Draws of the latent's stream, in its order.
struct Draws {
  std::function<Tensor(const Shape&)> next;
  std::function<void()> first;  // draws x_0's, between the two pictures
};

/// Encodes what the rows read of picture and mask.
Pictures read_pictures(const Manifest& manifest, const Program& program, const Inputs& inputs, const RunOnce& run,
                       const Draws& draws);

/// The conditions of the program, by the name of the input, without those of latent and time.
std::map<std::string, Sides> make_conditions(const Manifest& manifest, const Program& program, const Inputs& inputs,
                                             const Pictures& pictures, const RunOnce& run);

}  // namespace edgediff
