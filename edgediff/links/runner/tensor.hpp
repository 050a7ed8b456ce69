// Arrays of the program, and `.safetensors` files of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "reader/manifest.hpp"

namespace edgediff {

/// Elements of a shape.
std::size_t count(const Shape& shape);

/// `[1, 4, 16, 16]`, for messages.
std::string text(const Shape& shape);

/// A dense array, row by row. The program computes in float32, to which every coefficient is rounded; token ids and
/// classes are whole numbers below 2^24, which float32 holds exactly, and become integers where a graph asks for them.
struct Tensor {
  Shape shape;
  std::vector<float> values;

  Tensor() = default;
  explicit Tensor(Shape sizes) : shape(std::move(sizes)), values(count(shape)) {}

  /// Part `index` along `axis`, that axis kept with size 1.
  Tensor part(std::size_t axis, std::int32_t index) const;
};

/// Two arrays of one shape, one after the other along their first axis.
Tensor stacked(const Tensor& first, const Tensor& second);

/// Arrays joined along their last axis, all other sizes equal.
Tensor joined(const std::vector<Tensor>& parts);

/// factor * tensor.
Tensor scaled(const Tensor& tensor, double factor);

/// total += factor * tensor, unless factor is 0; the first term of a sum makes it.
void add(Tensor& total, double factor, const Tensor& tensor);

using Tensors = std::map<std::string, Tensor>;

/// Reads F32, F16, I64 and I32. Throws BadInput for anything else, and for a file that lies about its sizes.
Tensors read_safetensors(const std::filesystem::path& file);

/// Writes every tensor as F32. Throws BadInput when the file cannot be written.
void write_safetensors(const std::filesystem::path& file, const Tensors& tensors);

}  // namespace edgediff
