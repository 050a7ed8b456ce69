// A program of a bundle, executed around the engine: the twin of edgediff/runtime.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "conditions.hpp"
#include "engine.hpp"
#include "inputs.hpp"
#include "reader/manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

/// (graph, batch) pairs that a program runs, in the order of first use.
std::vector<std::pair<std::string, std::int32_t>> used_graphs(const Manifest& manifest, const Program& program);

/// The last latent [1, *latent] and what it was decoded to, with values in [-1, 1]: [1, channels, height, width], or
/// [1, channels, samples].
struct Made {
  Tensor latent, image;
  bool flagged = false;  // by the bundle's safety checker
};

class Session {
 public:
  /// Loads every graph that the program runs. All three must outlive the session. Throws what `Engine::load` throws.
  Session(const Manifest& manifest, const Program& program, Engine& engine);

  /// Makes one picture. Throws Failed, naming the row, for values that are NaN or infinite.
  Made make(const Inputs& inputs, std::uint64_t seed);

  /// A small picture of a latent, values in [-1, 1]; the decoder's where the bundle has no preview.
  Tensor preview(const Tensor& latent);

 private:
  using Past = std::map<std::string, std::deque<Tensor>>;  // carry -> its values, newest first

  Tensor predict(const Row& row, const Tensor& latent);
  Tensor guided(const Row& row, const Tensor& latent);
  Tensor call(const Row& row, std::int32_t batch, std::size_t side, const Tensor& latent);
  Tensor feed(const Row& row, const TensorSpec& spec, std::int32_t batch, std::size_t side, const Tensor& latent) const;
  Tensor carried(const Past& past, const std::string& carry, std::int32_t batch, const Row& row) const;
  Tensor decode(const Tensor& latent);
  Tensors once(const std::string& graph, const Tensors& inputs);

  const Manifest& manifest_;
  const Program& program_;
  Engine& engine_;
  std::map<std::string, std::size_t> depth_;  // carry -> how many of its past values some row mixes
  std::size_t held_ = 0;                      // how many guidance differences some row holds
  // Of the picture that is being made:
  double scale_ = 1;  // of guidance, where a row asks for it
  std::map<std::string, Sides> given_;
  Past past_[2];  // one set of carries in batched mode, one for each side in sequential mode
  std::deque<Tensor> differences_;
};

}  // namespace edgediff
