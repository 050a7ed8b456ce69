// Every graph on the inputs of the bundle's golden files, compared with what PyTorch made of them.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "reader/manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

/// `lines`: `{"graph", "call", "output", "psnr_db", "max_abs", "finite"}` for each output, PSNR with the largest
/// magnitude of the reference as peak, 200 for equal values, as edgediff/verify.py has it. `outputs` are named
/// `<graph>.<call>.<output>`. `good`: all are finite and none is below the floor.
struct Checked {
  std::vector<nlohmann::json> lines;
  Tensors outputs;
  bool good = true;
};

/// Throws BadInput when the bundle has no golden file, or one that does not fit its graph.
Checked check_golden(const Manifest& manifest, const std::filesystem::path& folder, const std::optional<double>& floor);

}  // namespace edgediff
