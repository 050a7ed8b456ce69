// `manifest.json` as the runner needs it; edgediff/runtime/manifest.py says what each field means.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensor.hpp"

namespace edgediff {

constexpr std::int32_t kBatch = -1;  // in a shape: 1, or 2 where both prompts run in one call

enum class DType { float32, float16, int64, int32 };

struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;

  Shape sized(std::int32_t batch) const;
  /// The axis that is the batch, if there is one.
  std::optional<std::size_t> batch_axis() const;
};

struct Artifact {
  std::string file;
  std::string function = "forward";
  std::vector<std::string> data;
};

struct Graph {
  std::vector<TensorSpec> inputs, outputs;
  std::map<std::string, std::string> carries_in, carries_out;  // carry -> tensor
  std::map<std::string, Artifact> artifacts;                   // backend -> where it is
};

struct Clip {
  float x, e, limit, weight;
};

struct Row {
  float timestep = 0, input_scale = 1, noise = 0;
  std::vector<float> x, e;
  std::optional<Clip> clip;
  std::optional<std::string> graph;
  std::optional<float> guidance;
  std::vector<float> held_guidance;
  std::map<std::string, std::vector<float>> mix;
};

struct Stage {
  std::optional<std::string> graph;
  std::string input, output;
  float scale = 1, shift = 0;
};

struct Program {
  std::optional<Stage> encode;
  std::int32_t tokens = 0;  // ids of a text
  std::optional<std::string> classes;
  std::int32_t null_class = 0;
  Stage decode;
  Shape latent;  // without batch
  float init_scale = 1;
  bool batched = true;
  std::vector<Row> rows;

  /// Whether some row runs both prompts.
  bool is_guided() const;
};

struct Manifest {
  std::string name, kind;
  std::map<std::string, Graph> graphs;
  std::map<std::string, TensorSpec> carries;
  Program program;

  /// The graph of this name. Throws BadInput.
  const Graph& graph(const std::string& name) const;
  /// (graph, batch) pairs that the program runs, in the order of first use.
  std::vector<std::pair<std::string, std::int32_t>> used() const;
};

/// Reads `folder/manifest.json`. Throws BadInput for what is not a manifest of schema 1.x, or names a file outside.
Manifest read_manifest(const std::filesystem::path& folder);

}  // namespace edgediff
