// The stream of noise of one picture: the numbers of edgediff/runtime/rng.py, which defines them, bit for bit.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "tensor.hpp"

namespace edgediff {

class Rng {
 public:
  Rng(std::uint64_t seed, bool is_philox);

  /// The next draw, standard normal.
  Tensor normal(const Shape& shape);

 private:
  std::vector<double> groups(std::size_t count);
  std::vector<double> pairs(std::size_t count);
  std::vector<double> philox(std::size_t count);

  std::uint64_t seed_, draws_ = 0;
  bool is_philox_;
  std::mt19937 words_;
  std::optional<double> spare_;
};

}  // namespace edgediff
