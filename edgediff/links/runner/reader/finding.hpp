// What rules and runtime look up by name, and how a missing one is said.
#pragma once

#include <set>
#include <string>

#include "manifest.hpp"

namespace edgediff {

/// Throws Refused `graph`.
const Graph& find_graph(const Manifest& manifest, const std::string& name);

/// Throws Refused `tensor`.
const TensorSpec& find_named(const std::string& graph, const std::vector<TensorSpec>& tensors, const std::string& name);

/// Whether a shape is `[batch, ...]`: its first axis is 1 or the batch.
bool starts_with_batch(const Shape& shape);

/// The shape without its first axis.
Shape inner(const Shape& shape);

/// Whether a shape is `[batch, ...]` of the latent's sizes.
bool is_latent(const Shape& shape, const Program& program);

/// `[batch, 4, 16, 16]`, for messages.
std::string shape_text(const Shape& shape);

}  // namespace edgediff
