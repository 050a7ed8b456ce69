#include "session.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"

namespace edgediff {
namespace {

constexpr const char* kSample = "sample";
constexpr const char* kTimestep = "timestep";
constexpr const char* kText = "encoder_hidden_states";

Tensor scaled(const Tensor& tensor, float factor) {
  Tensor result = tensor;
  for (float& value : result.values) value *= factor;
  return result;
}

/// total += factor * tensor; the first term of a sum makes it.
void add(Tensor& total, float factor, const Tensor& tensor) {
  if (factor == 0.0F) return;
  if (total.values.empty()) {
    total = scaled(tensor, factor);
    return;
  }
  for (std::size_t index = 0; index < total.values.size(); ++index) {
    total.values[index] += factor * tensor.values[index];
  }
}

void check_finite(const Tensor& tensor, const std::string& what) {
  const auto bad = std::count_if(tensor.values.begin(), tensor.values.end(), [](float v) { return !std::isfinite(v); });
  if (bad == 0) return;
  throw Failed(what + " put out " + std::to_string(bad) + " of " + std::to_string(tensor.values.size()) +
               " values that are NaN or infinite; a precision that overflows does that");
}

void keep(std::deque<Tensor>& past, Tensor newest, std::size_t depth) {
  past.push_front(std::move(newest));
  if (past.size() > depth) past.resize(depth);
}

/// x_{i+1} of edgediff/runtime/steps.py, with the newest first in both histories.
Tensor update(const Row& row, const std::deque<Tensor>& latents, const std::deque<Tensor>& outputs,
              const Tensor* noise) {
  if (row.x.size() > latents.size() || row.e.size() > outputs.size()) {
    throw BadInput("manifest.json: a row reads further back than the program has run");
  }
  Tensor total;
  for (std::size_t back = 0; back < row.x.size(); ++back) add(total, row.x[back], latents[back]);
  for (std::size_t back = 0; back < row.e.size(); ++back) add(total, row.e[back], outputs[back]);
  if (noise != nullptr) add(total, row.noise, *noise);
  if (row.clip) {
    Tensor clamped;
    add(clamped, row.clip->x, latents.front());
    add(clamped, row.clip->e, outputs.front());
    for (float& value : clamped.values) value = std::clamp(value, -row.clip->limit, row.clip->limit);
    add(total, row.clip->weight, clamped);
  }
  return total.values.empty() ? scaled(latents.front(), 0.0F) : total;
}

std::size_t history(const std::vector<Row>& rows) {
  std::size_t longest = 1;
  for (const Row& row : rows) longest = std::max({longest, row.x.size(), row.e.size()});
  return longest;
}

std::size_t index_of(const std::vector<TensorSpec>& specs, const std::string& name, const std::string& graph) {
  const auto found = std::find_if(specs.begin(), specs.end(), [&name](const TensorSpec& s) { return s.name == name; });
  if (found == specs.end()) throw BadInput("manifest.json: graph '" + graph + "' has no tensor '" + name + "'");
  return static_cast<std::size_t>(found - specs.begin());
}

/// A carry's value at the batch of a call: a row of the prompt alone keeps the prompt's half.
Tensor at_batch(const Tensor& value, const TensorSpec& carry, std::int32_t batch) {
  const auto axis = carry.batch_axis();
  if (!axis || value.shape.at(*axis) == batch) return value;
  if (batch == 2) {
    throw BadInput("manifest.json: a guided row reads carry '" + carry.name + "', which was written without guidance");
  }
  return value.part(*axis, 1);
}

}  // namespace

Session::Session(const Manifest& manifest, Engine& engine) : manifest_(manifest), engine_(engine) {
  for (const auto& [graph, batch] : manifest.used()) engine.load(graph, batch);
  for (const Row& row : manifest.program.rows) {
    held_ = std::max(held_, row.held_guidance.size());
    for (const auto& [carry, weights] : row.mix) depth_[carry] = std::max(depth_[carry], weights.size());
  }
}

Made Session::make(const Inputs& inputs) {
  given_ = conditions(inputs);
  for (Past& past : past_) past.clear();
  differences_.clear();
  const std::size_t reach = history(manifest_.program.rows);
  std::deque<Tensor> latents{inputs.latent}, outputs;
  std::size_t drawn = 0, index = 0;
  for (const Row& row : manifest_.program.rows) {
    const std::string where = "row " + std::to_string(index++);
    if (row.graph) {
      Tensor output = predict(row, scaled(latents.front(), row.input_scale));
      check_finite(output, where + " (graph '" + *row.graph + "')");
      keep(outputs, std::move(output), reach);
    } else if (outputs.empty()) {
      throw BadInput("manifest.json: " + where + " holds the output before any graph has run");
    } else {
      keep(outputs, Tensor(outputs.front()), reach);
    }
    const bool noisy = row.noise != 0.0F;
    if (noisy && drawn == inputs.noise.size()) throw BadInput(where + " adds noise, of which too little was given");
    const Tensor* noise = noisy ? &inputs.noise[drawn++] : nullptr;
    keep(latents, update(row, latents, outputs, noise), reach);
  }
  return {latents.front(), decode(latents.front())};
}

std::vector<Tensor> Session::conditions(const Inputs& inputs) {
  std::vector<Tensor> found;
  if (const auto& stage = manifest_.program.encode) {
    const Graph& graph = manifest_.graph(*stage->graph);
    for (const Tensor& ids : inputs.ids) {
      auto outputs = engine_.run(*stage->graph, 1, {&ids});
      found.push_back(std::move(outputs[index_of(graph.outputs, stage->output, *stage->graph)]));
      check_finite(found.back(), "graph '" + *stage->graph + "'");
    }
  } else if (manifest_.program.classes) {
    for (const float number : inputs.classes) {
      found.emplace_back(Shape{1});
      found.back().values[0] = number;
    }
  }
  return found;
}

Tensor Session::predict(const Row& row, const Tensor& latent) {
  if (!row.guidance) {
    Tensor output = call(row, 1, 1, latent);
    if (row.held_guidance.size() > differences_.size()) {
      throw BadInput("manifest.json: a row holds the guidance of more rows than were guided");
    }
    for (std::size_t back = 0; back < row.held_guidance.size(); ++back) {
      add(output, row.held_guidance[back], differences_[back]);
    }
    return output;
  }
  Tensor negative, positive;
  if (manifest_.program.batched) {
    const Tensor both = call(row, 2, 0, latent);
    negative = both.part(0, 0);
    positive = both.part(0, 1);
  } else {
    negative = call(row, 1, 0, latent);
    positive = call(row, 1, 1, latent);
  }
  add(positive, -1.0F, negative);
  if (held_ != 0) keep(differences_, positive, held_);
  for (float& value : positive.values) value *= *row.guidance;
  add(positive, 1.0F, negative);
  return positive;
}

Tensor Session::call(const Row& row, std::int32_t batch, std::size_t side, const Tensor& latent) {
  const std::string& name = *row.graph;
  const Graph& graph = manifest_.graph(name);
  Past& past = past_[manifest_.program.batched ? 0 : side];
  const std::string condition = manifest_.program.classes.value_or(kText);
  std::map<std::string, Tensor> feed;
  feed[kSample] = batch == 2 ? stacked(latent, latent) : latent;
  if (!given_.empty()) {
    feed[condition] = batch == 2 ? stacked(given_.front(), given_.back()) : side == 1 ? given_.back() : given_.front();
  }
  for (const auto& [carry, tensor] : graph.carries_in) {
    const auto mix = row.mix.find(carry);
    feed[tensor] = carried(past, carry, batch, mix == row.mix.end() ? std::vector<float>{1.0F} : mix->second);
  }
  std::vector<const Tensor*> inputs;
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.name == kTimestep) {
      Tensor time(spec.sized(batch));
      std::fill(time.values.begin(), time.values.end(), row.timestep);
      feed[kTimestep] = std::move(time);
    }
    const auto found = feed.find(spec.name);
    if (found == feed.end()) {
      throw BadInput("manifest.json: graph '" + name + "' reads '" + spec.name + "', which this runner cannot supply");
    }
    inputs.push_back(&found->second);
  }
  std::vector<Tensor> outputs = engine_.run(name, batch, inputs);
  for (const auto& [carry, tensor] : graph.carries_out) {
    const auto depth = depth_.find(carry);
    keep(past[carry], Tensor(outputs[index_of(graph.outputs, tensor, name)]),
         depth == depth_.end() ? 1 : std::max<std::size_t>(depth->second, 1));
  }
  return std::move(outputs.front());
}

Tensor Session::carried(const Past& past, const std::string& carry, std::int32_t batch,
                        const std::vector<float>& mix) const {
  const auto found = past.find(carry);
  if (found == past.end() || found->second.size() < mix.size()) {
    throw BadInput("manifest.json: a row reads carry '" + carry + "' before any row writes it");
  }
  Tensor total(manifest_.carries.at(carry).sized(batch));
  for (std::size_t back = 0; back < mix.size(); ++back) {
    add(total, mix[back], at_batch(found->second[back], manifest_.carries.at(carry), batch));
  }
  return total;
}

Tensor Session::decode(const Tensor& latent) {
  const Stage& stage = manifest_.program.decode;
  Tensor value = scaled(latent, stage.scale);
  for (float& one : value.values) one += stage.shift;
  if (!stage.graph) return value;
  auto outputs = engine_.run(*stage.graph, 1, {&value});
  Tensor image = std::move(outputs[index_of(manifest_.graph(*stage.graph).outputs, stage.output, *stage.graph)]);
  check_finite(image, "graph '" + *stage.graph + "'");
  return image;
}

}  // namespace edgediff
