#include "session.hpp"

#include <algorithm>
#include <cmath>

#include "reader/errors.hpp"
#include "reader/finding.hpp"
#include "rng.hpp"

namespace edgediff {
namespace {

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

/// A sum without terms is zeros.
Tensor or_zeros(Tensor total, const Tensor& like) { return total.values.empty() ? Tensor(like.shape) : total; }

/// x_{i+1} before it is blended, with the newest first in both histories.
Tensor updated(const Update& update, const std::deque<Tensor>& latents, const std::deque<Tensor>& outputs,
               const Tensor& noise) {
  Tensor total;
  for (std::size_t back = 0; back < update.x.size(); ++back) add(total, update.x[back], latents.at(back));
  for (std::size_t back = 0; back < update.e.size(); ++back) add(total, update.e[back], outputs.at(back));
  add(total, update.noise, noise);
  if (update.clip) {
    const auto limit = static_cast<float>(update.clip->limit);
    Tensor clamped;
    add(clamped, update.clip->x, latents.front());
    add(clamped, update.clip->e, outputs.front());
    clamped = or_zeros(std::move(clamped), latents.front());
    for (float& value : clamped.values) value = std::clamp(value, -limit, limit);
    add(total, update.clip->weight, clamped);
  }
  return or_zeros(std::move(total), latents.front());
}

/// Outside the mask, which lies over every channel, the picture with noise.
void blend(const Blend& blend, const Pictures& pictures, const Tensor& noise, Tensor& latent) {
  Tensor outside;
  add(outside, blend.picture, pictures.latent);
  add(outside, blend.noise, noise);
  outside = or_zeros(std::move(outside), latent);
  const std::size_t places = pictures.mask.values.size();
  for (std::size_t index = 0; index < latent.values.size(); ++index) {
    const float mask = pictures.mask.values[index % places];
    latent.values[index] = mask * latent.values[index] + (1.0F - mask) * outside.values[index];
  }
}

std::size_t history(const std::vector<Row>& rows) {
  std::size_t longest = 1;
  for (const Row& row : rows) longest = std::max({longest, row.update.x.size(), row.update.e.size()});
  return longest;
}

/// Whether x_0's draw is needed.
bool needs_noise(const Program& program) {
  return program.init.noise != 0 || std::any_of(program.rows.begin(), program.rows.end(),
                                                [](const Row& row) { return row.blend && row.blend->noise != 0; });
}

std::size_t index_of(const std::vector<TensorSpec>& specs, const std::string& name) {
  const auto found = std::find_if(specs.begin(), specs.end(), [&name](const TensorSpec& s) { return s.name == name; });
  if (found == specs.end()) throw Refused("tensor", "there is no tensor '" + name + "'");
  return static_cast<std::size_t>(found - specs.begin());
}

/// A carry's value at the batch of a call: a row of the prompt alone keeps the prompt's half.
Tensor at_batch(const Tensor& value, const TensorSpec& carry, std::int32_t batch) {
  const auto axis = carry.batch_axis();
  return !axis || value.shape.at(*axis) == batch ? value : value.part(*axis, 1);
}

}  // namespace

std::vector<std::pair<std::string, std::int32_t>> used_graphs(const Manifest& manifest, const Program& program) {
  std::vector<std::pair<std::string, std::int32_t>> found;
  const auto add = [&found](const std::string& graph, std::int32_t batch) {
    const auto pair = std::make_pair(graph, batch);
    if (std::find(found.begin(), found.end(), pair) == found.end()) found.push_back(pair);
  };
  for (const std::string& name : used_encoders(manifest, program)) add(manifest.encoders.find(name)->graph, 1);
  if (program.takes_one(Takes::picture)) add(manifest.picture->graph, 1);
  for (const Row& row : program.rows) {
    if (row.graph) add(*row.graph, row.guidance && program.batched ? 2 : 1);
  }
  if (manifest.decoder.graph) add(*manifest.decoder.graph, 1);
  if (manifest.safety) add(manifest.safety->graph, 1);
  return found;
}

Session::Session(const Manifest& manifest, const Program& program, Engine& engine)
    : manifest_(manifest), program_(program), engine_(engine) {
  for (const auto& [graph, batch] : used_graphs(manifest, program)) engine.load(graph, batch);
  for (const Row& row : program.rows) {
    if (row.held) held_ = std::max(held_, row.held->weights.size());
    for (const auto& [carry, weights] : row.mix) depth_[carry] = std::max(depth_[carry], weights.size());
  }
}

Made Session::make(const Inputs& inputs, std::uint64_t seed) {
  for (Past& past : past_) past.clear();
  differences_.clear();
  scale_ = inputs.guidance ? *inputs.guidance : program_.guidance ? program_.guidance->scale : 1;
  Rng rng(seed, manifest_.is_philox);
  Shape shape = program_.latent;
  shape.insert(shape.begin(), 1);
  Tensor noise(shape);
  const Draws draws{[&rng](const Shape& sizes) { return rng.normal(sizes); },
                    [&] {
                      if (inputs.noise) {
                        noise = *inputs.noise;
                      } else if (needs_noise(program_)) {
                        noise = rng.normal(shape);
                      }
                    }};
  const RunOnce run = [this](const std::string& graph, const Tensors& feed) { return once(graph, feed); };
  const Pictures pictures = read_pictures(manifest_, program_, inputs, run, draws);
  given_ = make_conditions(manifest_, program_, inputs, pictures, run);
  Tensor start = scaled(noise, program_.init.noise);
  if (program_.init.picture != 0) add(start, program_.init.picture, pictures.latent);
  const std::size_t reach = history(program_.rows);
  std::deque<Tensor> latents{inputs.latent.value_or(std::move(start))}, outputs;
  std::size_t index = 0;
  for (const Row& row : program_.rows) {
    const std::string where = "row " + std::to_string(index++);
    if (row.graph) {
      const bool same = row.input_scale == 1;
      Tensor output = predict(row, same ? latents.front() : scaled(latents.front(), row.input_scale));
      check_finite(output, where + " (graph '" + *row.graph + "')");
      keep(outputs, std::move(output), reach);
    } else {
      keep(outputs, Tensor(outputs.front()), reach);
    }
    Tensor next = updated(row.update, latents, outputs, row.update.noise != 0 ? rng.normal(shape) : Tensor());
    if (row.blend) blend(*row.blend, pictures, noise, next);
    keep(latents, std::move(next), reach);
  }
  Made made{latents.front(), decode(latents.front())};
  if (const auto& safety = manifest_.safety) {
    const Tensors seen = once(safety->graph, {{safety->input, made.image}});
    const Tensor& value = seen.at(safety->output);
    made.flagged = std::any_of(value.values.begin(), value.values.end(),
                               [&safety](float one) { return one > static_cast<float>(safety->threshold); });
  }
  return made;
}

Tensor Session::preview(const Tensor& latent) {
  if (!manifest_.preview) return decode(latent);
  const Preview& spec = *manifest_.preview;
  if (spec.graph) {
    engine_.load(*spec.graph, 1);
    return once(*spec.graph, {{*spec.input, latent}}).at(*spec.output);
  }
  Tensor picture(Shape{1, 3, latent.shape[2], latent.shape[3]});
  const std::size_t places = picture.values.size() / 3;
  for (std::size_t index = 0; index < picture.values.size(); ++index) {
    const std::size_t colour = index / places;
    float total = 0;
    for (std::size_t channel = 0; channel < spec.weights->size(); ++channel) {
      total += static_cast<float>((*spec.weights)[channel][colour]) * latent.values[channel * places + index % places];
    }
    picture.values[index] = total + static_cast<float>((*spec.bias)[colour]);
  }
  return picture;
}

Tensor Session::predict(const Row& row, const Tensor& latent) {
  if (row.guidance) return guided(row, latent);
  Tensor output = call(row, 1, 1, latent);
  if (!row.held) return output;
  const float times = row.held->times_scale_minus_one ? static_cast<float>(scale_ - 1) : 1.0F;
  for (std::size_t back = 0; back < row.held->weights.size(); ++back) {
    add(output, static_cast<float>(row.held->weights[back]) * times, differences_.at(back));
  }
  return output;
}

Tensor Session::guided(const Row& row, const Tensor& latent) {
  Tensor empty, prompt;
  if (program_.batched) {
    const Tensor both = call(row, 2, 0, latent);
    empty = both.part(0, 0);
    prompt = both.part(0, 1);
  } else {
    empty = call(row, 1, 0, latent);
    prompt = call(row, 1, 1, latent);
  }
  add(prompt, -1, empty);
  if (held_ != 0) keep(differences_, prompt, held_);
  Tensor output = scaled(prompt, row.guidance->number.value_or(scale_));
  add(output, 1, empty);
  return output;
}

Tensor Session::call(const Row& row, std::int32_t batch, std::size_t side, const Tensor& latent) {
  const std::string& name = *row.graph;
  const Graph& graph = find_graph(manifest_, name);
  Past& past = past_[program_.batched ? 0 : side];
  std::map<std::string, Tensor> carries;
  for (const auto& [carry, tensor] : graph.carries_in) carries[tensor] = carried(past, carry, batch, row);
  std::vector<Tensor> values;
  values.reserve(graph.inputs.size());
  for (const TensorSpec& spec : graph.inputs) {
    const auto found = carries.find(spec.name);
    values.push_back(found != carries.end() ? std::move(found->second) : feed(row, spec, batch, side, latent));
  }
  std::vector<const Tensor*> inputs;
  for (const Tensor& value : values) inputs.push_back(&value);
  std::vector<Tensor> outputs = engine_.run(name, batch, inputs);
  for (const auto& [carry, tensor] : graph.carries_out) {
    const auto depth = depth_.find(carry);
    keep(past[carry], Tensor(outputs.at(index_of(graph.outputs, tensor))),
         depth == depth_.end() ? 1 : std::max<std::size_t>(depth->second, 1));
  }
  return std::move(outputs.at(index_of(graph.outputs, graph.free_outputs().front()->name)));
}

Tensor Session::feed(const Row& row, const TensorSpec& spec, std::int32_t batch, std::size_t side,
                     const Tensor& latent) const {
  const From from = manifest_.conditions.find(spec.name)->from;
  if (from == From::latent) return batch == 2 ? stacked(latent, latent) : latent;
  if (from == From::timestep) {
    Tensor time(spec.sized(batch));
    std::fill(time.values.begin(), time.values.end(), static_cast<float>(row.timestep));
    return time;
  }
  const Sides& sides = given_.at(spec.name);
  if (batch == 2 && spec.batch_axis()) return stacked(sides.empty, sides.prompt);
  return side == 1 ? sides.prompt : sides.empty;
}

Tensor Session::carried(const Past& past, const std::string& carry, std::int32_t batch, const Row& row) const {
  const TensorSpec& spec = *manifest_.carries.find(carry);
  const std::deque<Tensor>& values = past.at(carry);
  const std::vector<double>* mix = row.mix.find(carry);
  if (mix == nullptr) return at_batch(values.front(), spec, batch);
  Tensor total;
  for (std::size_t back = 0; back < mix->size(); ++back)
    add(total, (*mix)[back], at_batch(values.at(back), spec, batch));
  return total.values.empty() ? Tensor(spec.sized(batch)) : total;
}

Tensors Session::once(const std::string& name, const Tensors& inputs) {
  const Graph& graph = find_graph(manifest_, name);
  std::vector<const Tensor*> values;
  for (const TensorSpec& spec : graph.inputs) values.push_back(&inputs.at(spec.name));
  std::vector<Tensor> found = engine_.run(name, 1, values);
  Tensors outputs;
  for (std::size_t index = 0; index < found.size(); ++index) {
    check_finite(found[index], "graph '" + name + "'");
    outputs.emplace(graph.outputs.at(index).name, std::move(found[index]));
  }
  return outputs;
}

Tensor Session::decode(const Tensor& latent) {
  const Decoder& stage = manifest_.decoder;
  Tensor value = latent;
  for (float& one : value.values) one = one * static_cast<float>(stage.scale) + static_cast<float>(stage.shift);
  return stage.graph ? once(*stage.graph, {{*stage.input, value}}).at(*stage.output) : value;
}

}  // namespace edgediff
