#include "finding.hpp"

#include "errors.hpp"

namespace edgediff {

const Graph& find_graph(const Manifest& manifest, const std::string& name) {
  const Graph* graph = manifest.graphs.find(name);
  if (graph == nullptr) throw Refused("graph", "graph '" + name + "' does not exist");
  return *graph;
}

const TensorSpec& find_named(const std::string& graph, const std::vector<TensorSpec>& tensors,
                             const std::string& name) {
  const TensorSpec* tensor = find_tensor(tensors, name);
  if (tensor == nullptr) throw Refused("tensor", "graph '" + graph + "' has no tensor '" + name + "'");
  return *tensor;
}

bool starts_with_batch(const Shape& shape) { return !shape.empty() && (shape[0] == 1 || shape[0] == kBatch); }

Shape inner(const Shape& shape) { return shape.empty() ? shape : Shape(shape.begin() + 1, shape.end()); }

bool is_latent(const Shape& shape, const Program& program) {
  return starts_with_batch(shape) && inner(shape) == program.latent;
}

std::string shape_text(const Shape& shape) {
  std::string found;
  for (const std::int32_t size : shape) {
    found += (found.empty() ? "" : ", ") + (size == kBatch ? std::string("batch") : std::to_string(size));
  }
  return "[" + found + "]";
}

}  // namespace edgediff
