// The program of a manifest, executed around the engine: the twin of edgediff/runtime.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "engine.hpp"
#include "inputs.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace edgediff {

/// The last latent [1, *latent] and the picture [1, channels, height, width] with samples in [-1, 1].
struct Made {
  Tensor latent, image;
};

class Session {
 public:
  /// Loads every graph that the program runs. Both must outlive the session. Throws what `Engine::load` throws.
  Session(const Manifest& manifest, Engine& engine);

  /// Makes one picture. Throws Failed, naming the row, for values that are NaN or infinite.
  Made make(const Inputs& inputs);

 private:
  using Past = std::map<std::string, std::deque<Tensor>>;  // carry -> its values, newest first

  Tensor predict(const Row& row, const Tensor& latent);
  Tensor call(const Row& row, std::int32_t batch, std::size_t side, const Tensor& latent);
  Tensor carried(const Past& past, const std::string& carry, std::int32_t batch, const std::vector<float>& mix) const;
  Tensor decode(const Tensor& latent);
  std::vector<Tensor> conditions(const Inputs& inputs);

  const Manifest& manifest_;
  Engine& engine_;
  std::map<std::string, std::size_t> depth_;  // carry -> how many of its past values some row mixes
  std::size_t held_ = 0;                      // how many guidance differences some row holds
  // Of the picture that is being made:
  std::vector<Tensor> given_;  // the condition of each side: negative, prompt
  Past past_[2];               // one set of carries in batched mode, one for each side in sequential mode
  std::deque<Tensor> differences_;
};

}  // namespace edgediff
