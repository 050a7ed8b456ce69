// The graphs of a bundle, opened with ExecuTorch.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>

#include "reader/manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

constexpr const char* kBackend = "executorch";

/// Called after every call of a graph: its name (`<graph>@<batch>` where it was loaded at two batch sizes) and the
/// milliseconds that the call took, conversions of inputs and outputs included.
using Heard = std::function<void(const std::string&, double)>;

/// Loaded methods by graph and batch. Graphs whose artifacts are in one file share that file's weights.
class Engine {
 public:
  /// Opens nothing yet. `manifest` must outlive the engine. `traced`: every operator of every call is recorded.
  Engine(const Manifest& manifest, std::filesystem::path folder, bool traced = false);

  /// Makes a graph ready at this batch, unless it is; milliseconds that it took. Throws BadInput for a graph without
  /// an artifact and for a method whose ends are not the manifest's, Failed when the runtime refuses the file.
  double load(const std::string& graph, std::int32_t batch);

  /// Outputs in the manifest's order, from inputs in the manifest's order. Throws Failed.
  std::vector<Tensor> run(const std::string& graph, std::int32_t batch, const std::vector<const Tensor*>& inputs);

  /// Who hears about every call from now on.
  void hear(Heard heard) { heard_ = std::move(heard); }

  /// What the graph is called in results.
  std::string label(const std::string& graph, std::int32_t batch) const;

  /// Writes what a traced engine has recorded: an ETDump for each method, `<label>.etdp`, into the folder. Throws
  /// BadInput.
  void write_traces(const std::filesystem::path& out);

  /// Bytes of activations that ExecuTorch planned ahead, over all loaded methods.
  std::int64_t planned_bytes() const { return planned_bytes_; }

 private:
  using Module = executorch::extension::Module;
  struct Method {
    Module* module;
    std::string name;
    executorch::etdump::ETDumpGen* tracer;  // none where nothing is traced
  };

  Module& open(const Artifact& artifact);
  const Method& method(const std::string& graph, std::int32_t batch) const;

  const Manifest& manifest_;
  std::filesystem::path folder_;
  bool traced_;
  std::vector<std::unique_ptr<executorch::etdump::ETDumpGen>> tracers_;  // before the modules, which write to them
  std::map<std::string, std::unique_ptr<Module>> modules_;               // by file
  std::map<std::pair<std::string, std::int32_t>, Method> methods_;
  std::int64_t planned_bytes_ = 0;
  Heard heard_;
};

/// Sets the size of ExecuTorch's pool of threads (0: leaves its own choice) and returns it. Before any load.
std::size_t set_threads(std::size_t wanted);

}  // namespace edgediff
