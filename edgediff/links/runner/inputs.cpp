#include "inputs.hpp"

#include <algorithm>
#include <array>
#include <random>

#include "errors.hpp"

namespace edgediff {
namespace {

constexpr std::array<const char*, 4> kNames = {"latent", "noise", "input_ids", "class_labels"};

const Tensor* find(const Tensors& given, const char* name) {
  const auto found = given.find(name);
  return found == given.end() ? nullptr : &found->second;
}

Tensor normal(const Shape& shape, float scale, std::mt19937_64& generator) {
  Tensor tensor(shape);
  std::normal_distribution<float> distribution;
  for (float& value : tensor.values) value = scale * distribution(generator);
  return tensor;
}

std::vector<Tensor> rows_of(const Tensor& tensor) {
  std::vector<Tensor> rows;
  for (std::int32_t index = 0; index < tensor.shape.at(0); ++index) rows.push_back(tensor.part(0, index));
  return rows;
}

std::vector<Tensor> golden_ids(const Manifest& manifest, const std::filesystem::path& folder) {
  const Stage& stage = *manifest.program.encode;
  const std::filesystem::path file = folder / "golden" / (*stage.graph + ".safetensors");
  const Tensors golden = read_safetensors(file);
  const auto found = golden.find("0.in." + stage.input);
  if (found == golden.end()) throw BadInput(file.string() + ": has no '0.in." + stage.input + "'; give --inputs");
  return std::vector<Tensor>(manifest.program.is_guided() ? 2 : 1, found->second);
}

std::vector<float> first_class(const Program& program) {
  if (!program.is_guided()) return {0.0F};
  return {static_cast<float>(program.null_class), 0.0F};
}

void check(const Program& program, const Inputs& inputs, const Shape& latent) {
  const auto check_shape = [&latent](const Tensor& tensor, const char* name) {
    if (tensor.shape == latent) return;
    throw BadInput(std::string("'") + name + "' has shape " + text(tensor.shape) + ", this bundle needs " +
                   text(latent));
  };
  check_shape(inputs.latent, "latent");
  for (const Tensor& one : inputs.noise) check_shape(one, "noise");
  const std::size_t sides = program.is_guided() ? 2 : 1;
  const std::size_t have = program.encode ? inputs.ids.size() : inputs.classes.size();
  if ((program.encode || program.classes) && have != sides) {
    throw BadInput("the prompts have " + std::to_string(have) + " rows, this bundle needs " + std::to_string(sides));
  }
}

}  // namespace

Tensors read_inputs(const std::filesystem::path& file) {
  Tensors given = read_safetensors(file);
  for (const auto& [name, tensor] : given) {
    if (std::find(kNames.begin(), kNames.end(), name) == kNames.end() || tensor.shape.empty()) {
      throw BadInput(file.string() + ": unknown tensor '" + name +
                     "' (allowed: latent, noise, input_ids, class_labels)");
    }
  }
  return given;
}

Inputs make_inputs(const Manifest& manifest, const std::filesystem::path& folder, const Tensors& given, unsigned seed) {
  const Program& program = manifest.program;
  Shape shape = program.latent;
  shape.insert(shape.begin(), 1);
  std::mt19937_64 generator(seed);
  Inputs inputs;
  const Tensor* latent = find(given, "latent");
  inputs.latent = latent != nullptr ? *latent : normal(shape, program.init_scale, generator);
  if (const Tensor* noise = find(given, "noise")) {
    inputs.noise = rows_of(*noise);
  } else {
    for (const Row& row : program.rows) {
      if (row.noise != 0.0F) inputs.noise.push_back(normal(shape, 1.0F, generator));
    }
  }
  if (program.encode) {
    const Tensor* ids = find(given, "input_ids");
    inputs.ids = ids != nullptr ? rows_of(*ids) : golden_ids(manifest, folder);
  }
  if (program.classes) {
    const Tensor* classes = find(given, "class_labels");
    inputs.classes = classes != nullptr ? classes->values : first_class(program);
  }
  check(program, inputs, shape);
  return inputs;
}

}  // namespace edgediff
