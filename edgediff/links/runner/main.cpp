// edgediff-runner: a bundle on a device, timed or checked, told in JSON lines. edgediff/links/adb.py reads them.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <random>

#include <nlohmann/json.hpp>

#include "check.hpp"
#include "engine.hpp"
#include "errors.hpp"
#include "manifest.hpp"
#include "options.hpp"
#include "process.hpp"
#include "session.hpp"

namespace edgediff {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Milliseconds to the tenth of a microsecond.
double rounded_ms(double milliseconds) { return std::round(milliseconds * 1e4) / 1e4; }

/// Prints a line at once: who reads it may lose the device at any time.
void say(const Json& line) { std::cout << line.dump() << std::endl; }

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Tensor normal(const Shape& latent, float scale, std::mt19937_64& generator) {
  Shape shape = latent;
  shape.insert(shape.begin(), 1);
  Tensor tensor(std::move(shape));
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

/// What no file gives: latent and noise from a generator of its own (a seed of edgediff draws others), the golden
/// file's prompt, class 0.
Inputs drawn(const Manifest& manifest, const std::filesystem::path& folder, unsigned seed) {
  std::mt19937_64 generator(seed);
  const Program& program = manifest.program;
  Inputs inputs;
  inputs.latent = normal(program.latent, program.init_scale, generator);
  for (const Row& row : program.rows) {
    if (row.noise != 0.0F) inputs.noise.push_back(normal(program.latent, 1.0F, generator));
  }
  if (program.encode) inputs.ids = golden_ids(manifest, folder);
  if (program.classes && program.is_guided()) inputs.classes = {static_cast<float>(program.null_class)};
  if (program.classes) inputs.classes.push_back(0.0F);
  return inputs;
}

void check_given(const Manifest& manifest, const Inputs& inputs) {
  Shape latent = manifest.program.latent;
  latent.insert(latent.begin(), 1);
  if (inputs.latent.shape != latent) {
    throw BadInput("'latent' has shape " + text(inputs.latent.shape) + ", this bundle needs " + text(latent));
  }
  const std::size_t sides = manifest.program.is_guided() ? 2 : 1;
  const std::size_t have = manifest.program.encode ? inputs.ids.size() : inputs.classes.size();
  if ((manifest.program.encode || manifest.program.classes) && have != sides) {
    throw BadInput("the conditions have " + std::to_string(have) + " rows, this bundle needs " + std::to_string(sides));
  }
}

Inputs given(const Manifest& manifest, const std::filesystem::path& folder, const std::filesystem::path& file) {
  Inputs inputs = drawn(manifest, folder, 0);
  for (auto& [name, tensor] : read_safetensors(file)) {
    if (name == "latent") {
      inputs.latent = std::move(tensor);
    } else if (name == "noise") {
      inputs.noise = rows_of(tensor);
    } else if (name == "input_ids") {
      inputs.ids = rows_of(tensor);
    } else if (name == "class_labels") {
      inputs.classes = tensor.values;
    } else {
      throw BadInput(file.string() + ": unknown tensor '" + name + "' (allowed: latent, noise, input_ids, class_labels)");
    }
  }
  try {
    check_given(manifest, inputs);
  } catch (const BadInput& error) {
    throw BadInput(file.string() + ": " + error.what());
  }
  return inputs;
}

/// The picture as an app shows it: part of what an image takes.
std::vector<std::uint8_t> pixels(const Tensor& image) {
  std::vector<std::uint8_t> bytes(image.values.size());
  for (std::size_t index = 0; index < bytes.size(); ++index) {
    bytes[index] = static_cast<std::uint8_t>(std::lrint(std::clamp(image.values[index] * 0.5F + 0.5F, 0.0F, 1.0F) * 255.0F));
  }
  return bytes;
}

struct Loaded {
  std::unique_ptr<Engine> engine;
  double milliseconds = 0;
  Json graphs = Json::object();
};

Loaded load(const Manifest& manifest, const Options& options) {
  const auto start = Clock::now();
  Loaded loaded{std::make_unique<Engine>(manifest, options.bundle, options.etdump.has_value())};
  std::vector<double> took;
  for (const auto& [graph, batch] : manifest.used()) took.push_back(loaded.engine->load(graph, batch));
  loaded.milliseconds = seconds_since(start) * 1e3;
  std::size_t index = 0;
  for (const auto& [graph, batch] : manifest.used()) {
    loaded.graphs[loaded.engine->label(graph, batch)] = rounded_ms(took[index++]);
  }
  return loaded;
}

void profile(const Options& options, const Manifest& manifest) {
  const auto base = rss_mb();
  Loaded loaded = load(manifest, options);
  say({{"load_ms", rounded_ms(loaded.milliseconds)}, {"graphs_load_ms", loaded.graphs},
               {"base_rss_mb", or_null(base)}, {"planned_mb", static_cast<double>(loaded.engine->planned_bytes()) / 1e6}});
  Session session(manifest, *loaded.engine);
  Made made;
  const auto make = [&](unsigned seed) {
    const Inputs inputs = options.inputs ? given(manifest, options.bundle, *options.inputs)
                                         : drawn(manifest, options.bundle, seed);
    const auto start = Clock::now();
    made = session.make(inputs);
    pixels(made.image);
    return seconds_since(start) * 1e3;
  };
  for (int index = 0; index < options.warmup; ++index) {
    say({{index == 0 ? "first_image_ms" : "warmup_ms", rounded_ms(make(static_cast<unsigned>(index)))}});
  }
  std::vector<Json> calls;
  loaded.engine->hear([&calls](const std::string& graph, double ms) {
    calls.push_back({{"graph", graph}, {"ms", rounded_ms(ms)}});
  });
  const auto start = Clock::now();
  for (int index = 0; options.sustained > 0 ? seconds_since(start) < options.sustained : index < options.runs; ++index) {
    const double took = make(static_cast<unsigned>(index));
    for (const Json& call : calls) say(call);  // outside the time that is told
    calls.clear();
    say({{"image_ms", rounded_ms(took)}});
  }
  say({{"peak_rss_mb", or_null(peak_rss_mb())}, {"pss_mb", or_null(pss_mb())}});
  if (options.save) write_safetensors(*options.save, {{"latent", made.latent}, {"image", made.image}});
  if (options.etdump) loaded.engine->write_traces(*options.etdump);
  loaded.engine.reset();
  say({{"warm_load_ms", rounded_ms(load(manifest, options).milliseconds)}});
}

int run(const Options& options) {
  const Manifest manifest = read_manifest(options.bundle);
  const std::size_t threads = set_threads(static_cast<std::size_t>(options.threads));
  say({{"runtime", "executorch " EDGEDIFF_EXECUTORCH}, {"threads", threads}, {"affinity", affinity()}});
  if (!options.check) {
    profile(options, manifest);
    return 0;
  }
  const Checked checked = check_golden(manifest, options.bundle, options.floor);
  for (const Json& line : checked.lines) say(line);
  if (options.save) write_safetensors(*options.save, checked.outputs);
  return checked.good ? 0 : 1;
}

}  // namespace
}  // namespace edgediff

int main(int count, char** words) {
  try {
    return edgediff::run(edgediff::read_options(count, words));
  } catch (const edgediff::BadInput& error) {
    std::cerr << "edgediff-runner: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "edgediff-runner: " << error.what() << "\n";
    return 1;
  }
}
