#include "conditions.hpp"

#include <algorithm>
#include <set>

#include "reader/errors.hpp"
#include "reader/finding.hpp"

namespace edgediff {
namespace {

Shape at_batch_1(const Shape& shape) {
  Shape sizes = shape;
  std::replace(sizes.begin(), sizes.end(), kBatch, 1);
  return sizes;
}

std::vector<const TensorSpec*> inputs_of(const Manifest& manifest, const Program& program) {
  std::vector<const TensorSpec*> found;
  std::set<std::string> seen;
  for (const std::string& graph : program.graphs()) {
    for (const TensorSpec* spec : find_graph(manifest, graph).free_inputs()) {
      if (seen.insert(spec->name).second) found.push_back(spec);
    }
  }
  return found;
}

const Tensor& output_of(const Tensors& outputs, const std::string& name) {
  const auto found = outputs.find(name);
  if (found == outputs.end()) throw Failed("there is no output '" + name + "'");
  return found->second;
}

/// Texts through the encoders, each text and encoder once.
class Texts {
 public:
  Texts(const Manifest& manifest, const Inputs& inputs, const RunOnce& run)
      : manifest_(manifest), inputs_(inputs), run_(run) {}

  const TextIds& ids(const std::string& encoder, bool is_prompt) const {
    const auto& both = inputs_.texts.at(encoder);
    return is_prompt ? both.second : both.first;
  }

  Tensor joined_outputs(const Condition& condition, bool is_prompt) {
    std::vector<Tensor> parts;
    for (const TextOutput& one : condition.outputs) {
      parts.push_back(output_of(outputs(one.encoder, is_prompt), one.output));
    }
    return joined(parts);
  }

  bool is_empty(const Condition& condition) const {
    return std::all_of(condition.outputs.begin(), condition.outputs.end(),
                       [this](const TextOutput& one) { return ids(one.encoder, false).is_empty; });
  }

 private:
  const Tensors& outputs(const std::string& name, bool is_prompt) {
    const auto key = std::make_pair(name, is_prompt);
    const auto found = outputs_.find(key);
    if (found != outputs_.end()) return found->second;
    const Encoder& encoder = *manifest_.encoders.find(name);
    const TextIds& text = ids(name, is_prompt);
    Tensors feed{{encoder.ids, text.ids}};
    if (encoder.mask) feed[*encoder.mask] = text.mask;
    return outputs_.emplace(key, run_(encoder.graph, feed)).first->second;
  }

  const Manifest& manifest_;
  const Inputs& inputs_;
  const RunOnce& run_;
  std::map<std::pair<std::string, bool>, Tensors> outputs_;
};

Tensor filled(const Shape& shape, double value) {
  Tensor tensor(shape);
  std::fill(tensor.values.begin(), tensor.values.end(), static_cast<float>(value));
  return tensor;
}

Tensor constant(const TensorSpec& spec, const std::vector<double>& values) {
  Tensor tensor(at_batch_1(spec.shape));
  std::transform(values.begin(), values.end(), tensor.values.begin(), [](double v) { return static_cast<float>(v); });
  return tensor;
}

double embedded_scale(const Program& program, const Inputs& inputs) {
  const bool asked = inputs.guidance && !program.guidance;  // where it has both, the rows' scale is what is asked
  return asked ? *inputs.guidance : program.embedded_guidance->scale;
}

Sides sides_of(const TensorSpec& spec, const Condition& condition, const Program& program, const Inputs& inputs,
               const Pictures& pictures, Texts& texts, bool guided) {
  const auto same = [](Tensor value) { return Sides{value, value}; };
  switch (condition.from) {
    case From::text: {
      Tensor prompt = texts.joined_outputs(condition, true);
      if (!guided) return {Tensor(), std::move(prompt)};
      const bool zeros = condition.zeros && texts.is_empty(condition);
      return {zeros ? Tensor(prompt.shape) : texts.joined_outputs(condition, false), std::move(prompt)};
    }
    case From::text_mask: return {texts.ids(condition.encoder, false).mask, texts.ids(condition.encoder, true).mask};
    case From::class_label: {
      const double label = inputs.class_label;
      const double null = condition.null ? static_cast<double>(*condition.null) : label;
      return {filled({1}, null), filled({1}, label)};
    }
    case From::constant:
      return {constant(spec, condition.empty.value_or(condition.values)), constant(spec, condition.values)};
    case From::guidance: return same(filled({1}, embedded_scale(program, inputs)));
    case From::picture: return same(pictures.latent);
    case From::masked_picture: return same(pictures.masked);
    case From::mask: return same(pictures.mask);
    case From::latent:
    case From::timestep: break;
  }
  return {};
}

/// The latent of a picture [3, H, W].
Tensor encode(const Manifest& manifest, const Tensor& pixels, const RunOnce& run, const Draws& draws) {
  const PictureEncoder& spec = *manifest.picture;
  Tensor picture = pixels;
  picture.shape.insert(picture.shape.begin(), 1);
  const Tensors found = run(spec.graph, {{spec.input, picture}});
  Tensor value = output_of(found, spec.mean);
  if (spec.deviation) {
    const Tensor noise = draws.next(value.shape);
    const Tensor& deviation = output_of(found, *spec.deviation);
    for (std::size_t i = 0; i < value.values.size(); ++i) value.values[i] += deviation.values[i] * noise.values[i];
  }
  for (float& one : value.values) one = (one - static_cast<float>(spec.shift)) * static_cast<float>(spec.scale);
  return value;
}

/// [1, 1, h, w]: the pixel at the upper left of each place of the latent.
Tensor latent_mask(const Tensor& mask, const Program& program) {
  if (program.latent.size() != 3) throw Refused("mask", "a mask needs a latent with height and width");
  const std::int32_t height = program.latent[1], width = program.latent[2];
  Tensor found(Shape{1, 1, height, width});
  std::size_t at = 0;
  for (std::int32_t i = 0; i < height; ++i) {
    for (std::int32_t j = 0; j < width; ++j) {
      const std::int64_t y = std::int64_t{i} * mask.shape[0] / height, x = std::int64_t{j} * mask.shape[1] / width;
      found.values[at++] = mask.values[static_cast<std::size_t>(y * mask.shape[1] + x)];
    }
  }
  return found;
}

bool reads(const Manifest& manifest, const Program& program, From from) {
  const auto inputs = inputs_of(manifest, program);
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](const TensorSpec* spec) { return manifest.conditions.find(spec->name)->from == from; });
}

}  // namespace

Pictures read_pictures(const Manifest& manifest, const Program& program, const Inputs& inputs, const RunOnce& run,
                       const Draws& draws) {
  Pictures pictures;
  const bool needs_latent = program.init.picture != 0 || program.blends() || reads(manifest, program, From::picture);
  if (inputs.picture && needs_latent) pictures.latent = encode(manifest, *inputs.picture, run, draws);
  draws.first();
  if (inputs.picture && inputs.mask && reads(manifest, program, From::masked_picture)) {
    Tensor masked = *inputs.picture;
    const std::size_t pixels = inputs.mask->values.size();
    for (std::size_t i = 0; i < masked.values.size(); ++i) masked.values[i] *= 1.0F - inputs.mask->values[i % pixels];
    pictures.masked = encode(manifest, masked, run, draws);
  }
  if (inputs.mask) pictures.mask = latent_mask(*inputs.mask, program);
  return pictures;
}

std::map<std::string, Sides> make_conditions(const Manifest& manifest, const Program& program, const Inputs& inputs,
                                             const Pictures& pictures, const RunOnce& run) {
  std::map<std::string, Sides> found;
  Texts texts(manifest, inputs, run);
  for (const TensorSpec* spec : inputs_of(manifest, program)) {
    const Condition& condition = *manifest.conditions.find(spec->name);
    if (condition.from == From::latent || condition.from == From::timestep) continue;
    found[spec->name] = sides_of(*spec, condition, program, inputs, pictures, texts, program.is_guided());
  }
  return found;
}

}  // namespace edgediff
