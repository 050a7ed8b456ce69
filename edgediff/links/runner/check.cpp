#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "engine.hpp"
#include "reader/errors.hpp"

namespace edgediff {
namespace {

constexpr double kCap = 200.0;

nlohmann::json compare(const Tensor& reference, const Tensor& found) {
  if (reference.shape != found.shape) {
    throw Failed("an output has shape " + text(found.shape) + ", the golden file has " + text(reference.shape));
  }
  double peak = 0, largest = 0, squares = 0;
  for (std::size_t index = 0; index < found.values.size(); ++index) {
    if (!std::isfinite(found.values[index])) return {{"psnr_db", 0.0}, {"max_abs", nullptr}, {"finite", false}};
    const double error = static_cast<double>(found.values[index]) - reference.values[index];
    peak = std::max(peak, std::abs(static_cast<double>(reference.values[index])));
    largest = std::max(largest, std::abs(error));
    squares += error * error;
  }
  const double mean = squares / static_cast<double>(found.values.size());
  const double decibels = mean == 0 ? kCap : 10 * std::log10((peak == 0 ? 1 : peak * peak) / mean);
  return {{"psnr_db", std::min(decibels, kCap)}, {"max_abs", largest}, {"finite", true}};
}

/// Calls of a golden file: the words before the first point of its tensors' names.
std::set<std::string> calls_of(const Tensors& golden) {
  std::set<std::string> calls;
  for (const auto& [name, tensor] : golden) calls.insert(name.substr(0, name.find('.')));
  return calls;
}

const Tensor& tensor_of(const Tensors& golden, const std::string& name) {
  const auto found = golden.find(name);
  if (found == golden.end()) throw BadInput("has no tensor '" + name + "'; build the bundle again");
  return found->second;
}

/// The batch that a call was recorded at.
std::int32_t batch_of(const Graph& graph, const std::vector<const Tensor*>& inputs) {
  for (std::size_t index = 0; index < inputs.size(); ++index) {
    const auto axis = graph.inputs[index].batch_axis();
    if (axis) return inputs[index]->shape.at(*axis);
  }
  return 1;
}

void check_graph(Engine& engine, const std::string& name, const Graph& graph, const Tensors& golden,
                 const std::optional<double>& floor, Checked& checked) {
  for (const std::string& call : calls_of(golden)) {
    std::vector<const Tensor*> inputs;
    for (const TensorSpec& spec : graph.inputs) inputs.push_back(&tensor_of(golden, call + ".in." + spec.name));
    const std::int32_t batch = batch_of(graph, inputs);
    engine.load(name, batch);
    const std::vector<Tensor> outputs = engine.run(name, batch, inputs);
    for (std::size_t index = 0; index < outputs.size(); ++index) {
      const std::string& output = graph.outputs[index].name;
      nlohmann::json line = compare(tensor_of(golden, call + ".out." + output), outputs[index]);
      checked.good = checked.good && line["finite"] && (!floor || line["psnr_db"] >= *floor);
      line.update({{"graph", name}, {"call", std::stoi(call)}, {"output", output}});
      checked.lines.push_back(std::move(line));
      checked.outputs.emplace(name + "." + call + "." + output, outputs[index]);
    }
  }
}

}  // namespace

Checked check_golden(const Manifest& manifest, const std::filesystem::path& folder,
                     const std::optional<double>& floor) {
  Checked checked;
  Engine engine(manifest, folder);
  for (const auto& [name, graph] : manifest.graphs) {
    const std::filesystem::path file = folder / "golden" / (name + ".safetensors");
    if (!std::filesystem::exists(file)) continue;  // a large decoder has none, nor has a graph that no row runs
    try {
      check_graph(engine, name, graph, read_safetensors(file), floor, checked);
    } catch (const BadInput& error) {
      throw BadInput(file.string() + ": " + error.what());
    }
  }
  if (checked.lines.empty())
    throw BadInput((folder / "golden").string() + ": has no golden file; build the bundle again");
  return checked;
}

}  // namespace edgediff
