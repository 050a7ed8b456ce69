// edgediff-runner: a bundle on a device, timed or checked, told in JSON lines. edgediff/links/adb.py reads them.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "check.hpp"
#include "engine.hpp"
#include "inputs.hpp"
#include "options.hpp"
#include "process.hpp"
#include "reader/batch.hpp"
#include "reader/errors.hpp"
#include "reader/folder.hpp"
#include "reader/manifest.hpp"
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

/// The picture's bytes, or the sound's samples, as an app has them: part of what one takes.
std::vector<std::int16_t> rendered(const Tensor& made, bool is_audio) {
  std::vector<std::int16_t> values(made.values.size());
  std::transform(made.values.begin(), made.values.end(), values.begin(), [is_audio](float value) {
    const float whole =
        is_audio ? std::clamp(value, -1.0F, 1.0F) * 32767.0F : std::clamp(value * 0.5F + 0.5F, 0.0F, 1.0F) * 255.0F;
    return static_cast<std::int16_t>(std::lrint(whole));
  });
  return values;
}

/// The program that is asked for. Throws Refused `program` or `strength`, naming those that there are.
const std::string& chosen_program(const Manifest& manifest, const Options& options) {
  std::string known;
  const std::string* found = nullptr;
  int matches = 0;
  const std::string& wanted = options.program.value_or(manifest.default_program);
  for (const auto& [name, program] : manifest.programs) {
    const bool matches_this = options.strength ? program.strength == options.strength : name == wanted;
    if (matches_this) found = &name;
    matches += matches_this ? 1 : 0;
    known += (known.empty() ? "" : ", ") + name;
    if (options.strength && program.strength) known += " (strength " + Json(*program.strength).dump() + ")";
  }
  if (matches == 1) return *found;
  throw Refused(options.strength ? "strength" : "program",
                (options.strength ? "not one program has the strength " + Json(*options.strength).dump()
                                  : "there is no program '" + wanted + "'") +
                    "; the bundle has " + known);
}

struct Loaded {
  std::unique_ptr<Engine> engine;
  double milliseconds = 0;
  Json graphs = Json::object();
};

Loaded load(const Manifest& manifest, const Program& program, const Options& options) {
  const auto start = Clock::now();
  const auto used = used_graphs(manifest, program);
  Loaded loaded{std::make_unique<Engine>(manifest, options.bundle, options.etdump.has_value())};
  std::vector<double> took;
  for (const auto& [graph, batch] : used) took.push_back(loaded.engine->load(graph, batch));
  loaded.milliseconds = seconds_since(start) * 1e3;
  std::size_t index = 0;
  for (const auto& [graph, batch] : used) {
    loaded.graphs[loaded.engine->label(graph, batch)] = rounded_ms(took[index++]);
  }
  return loaded;
}

void save(const Options& options, const Manifest& manifest, const Made& made, Session& session) {
  Tensors tensors = {{"latent", made.latent}, {manifest.is_audio ? "sound" : "image", made.image}};
  if (!manifest.is_audio) tensors["preview"] = session.preview(made.latent);
  write_safetensors(*options.save, tensors);
}

void profile(const Options& options, const Manifest& manifest) {
  const auto base = rss_mb();
  const Program& program = *manifest.programs.find(chosen_program(manifest, options));
  const Inputs inputs = read_inputs(manifest, program, options.bundle, options.inputs, options.guidance);
  Loaded loaded = load(manifest, program, options);
  say({{"load_ms", rounded_ms(loaded.milliseconds)},
       {"graphs_load_ms", loaded.graphs},
       {"base_rss_mb", or_null(base)},
       {"planned_mb", static_cast<double>(loaded.engine->planned_bytes()) / 1e6}});
  Session session(manifest, program, *loaded.engine);
  Made made;
  std::vector<std::int16_t> shown;
  const auto make = [&](int index) {
    const auto start = Clock::now();
    made = session.make(inputs, options.seed + static_cast<std::uint64_t>(index));
    shown = rendered(made.image, manifest.is_audio);
    return seconds_since(start) * 1e3;
  };
  for (int index = 0; index < options.warmup; ++index) {
    say({{index == 0 ? "first_image_ms" : "warmup_ms", rounded_ms(make(index))}});
  }
  std::vector<Json> calls;
  loaded.engine->hear([&calls](const std::string& graph, double ms) {
    calls.push_back({{"graph", graph}, {"ms", rounded_ms(ms)}});
  });
  const auto start = Clock::now();
  for (int index = 0; options.sustained > 0 ? seconds_since(start) < options.sustained : index < options.runs;
       ++index) {
    const double took = make(index);
    for (const Json& call : calls) say(call);  // outside the time that is told
    calls.clear();
    say({{"image_ms", rounded_ms(took)}});
  }
  say({{"peak_rss_mb", or_null(peak_rss_mb())}, {"pss_mb", or_null(pss_mb())}});
  if (manifest.safety) say({{"flagged", made.flagged}});
  if (options.save) save(options, manifest, made, session);
  if (options.etdump) loaded.engine->write_traces(*options.etdump);
  loaded.engine.reset();
  say({{"warm_load_ms", rounded_ms(load(manifest, program, options).milliseconds)}});
}

Manifest open(const Options& options) {
  const auto backend = options.pushed ? std::optional<std::string>(kBackend) : std::nullopt;
  try {
    return open_bundle(options.bundle, {options.verify, backend});
  } catch (const Refused& error) {
    throw Refused(error.code, options.bundle.string() + ": " + error.what());
  }
}

int run(const Options& options) {
  if (options.read_manifests) {
    read_manifests(std::cin, std::cout);
    return 0;
  }
  const Manifest manifest = open(options);
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
  } catch (const edgediff::Refused& error) {
    std::cerr << "edgediff-runner: " << error.what() << " (" << error.code << ")\n";
    return 2;
  } catch (const edgediff::BadInput& error) {
    std::cerr << "edgediff-runner: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "edgediff-runner: " << error.what() << "\n";
    return 1;
  }
}
