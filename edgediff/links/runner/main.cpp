// edgediff-runner: a bundle on a device, timed or checked, told in JSON lines. edgediff/links/adb.py reads them.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "check.hpp"
#include "engine.hpp"
#include "errors.hpp"
#include "inputs.hpp"
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

/// The picture as an app shows it: part of what an image takes.
std::vector<std::uint8_t> pixels(const Tensor& image) {
  std::vector<std::uint8_t> bytes(image.values.size());
  for (std::size_t index = 0; index < bytes.size(); ++index) {
    bytes[index] =
        static_cast<std::uint8_t>(std::lrint(std::clamp(image.values[index] * 0.5F + 0.5F, 0.0F, 1.0F) * 255.0F));
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
  say({{"load_ms", rounded_ms(loaded.milliseconds)},
       {"graphs_load_ms", loaded.graphs},
       {"base_rss_mb", or_null(base)},
       {"planned_mb", static_cast<double>(loaded.engine->planned_bytes()) / 1e6}});
  const Tensors given = options.inputs ? read_inputs(*options.inputs) : Tensors{};
  Session session(manifest, *loaded.engine);
  Made made;
  std::vector<std::uint8_t> shown;
  const auto make = [&](unsigned seed) {
    const Inputs inputs = make_inputs(manifest, options.bundle, given, seed);
    const auto start = Clock::now();
    made = session.make(inputs);
    shown = pixels(made.image);
    return seconds_since(start) * 1e3;
  };
  for (int index = 0; index < options.warmup; ++index) {
    say({{index == 0 ? "first_image_ms" : "warmup_ms", rounded_ms(make(static_cast<unsigned>(index)))}});
  }
  std::vector<Json> calls;
  loaded.engine->hear(
      [&calls](const std::string& graph, double ms) { calls.push_back({{"graph", graph}, {"ms", rounded_ms(ms)}}); });
  const auto start = Clock::now();
  for (int index = 0; options.sustained > 0 ? seconds_since(start) < options.sustained : index < options.runs;
       ++index) {
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
