// The command line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace edgediff {

struct Options {
  std::filesystem::path bundle;
  int runs = 5, warmup = 1, threads = 0;
  double sustained = 0;  // seconds; 0: `runs` pictures
  bool check = false;
  bool read_manifests = false, verify = true, pushed = false;
  std::uint64_t seed = 0;  // of the first picture; the next one has the next
  std::optional<std::string> program;
  std::optional<double> strength, guidance;
  std::optional<double> floor;  // dB
  std::optional<std::filesystem::path> inputs, save, etdump;
};

/// Throws BadInput for what it does not know. Ends the process for --help and --version.
Options read_options(int count, char** words);

}  // namespace edgediff
