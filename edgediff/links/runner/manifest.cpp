#include "manifest.hpp"

#include <algorithm>
#include <fstream>

#include <nlohmann/json.hpp>

#include "errors.hpp"

namespace edgediff {
namespace {

using Json = nlohmann::json;

/// The value of a key that may be absent or null.
template <typename Value>
Value get_or(const Json& from, const char* key, Value otherwise) {
  const auto found = from.find(key);
  return found == from.end() || found->is_null() ? std::move(otherwise) : found->get<Value>();
}

bool has(const Json& from, const char* key) {
  const auto found = from.find(key);
  return found != from.end() && !found->is_null();
}

/// Throws BadInput unless the path stays inside the bundle.
void check_inside(const std::string& path) {
  const std::filesystem::path parts(path);
  const bool leaves = std::find(parts.begin(), parts.end(), "..") != parts.end();
  if (path.empty() || parts.is_absolute() || leaves) throw BadInput("the path '" + path + "' leaves the bundle");
}

DType read_dtype(const std::string& word) {
  static const std::map<std::string, DType> known = {
      {"float32", DType::float32}, {"float16", DType::float16}, {"int64", DType::int64}, {"int32", DType::int32}};
  const auto found = known.find(word);
  if (found == known.end()) throw BadInput("unknown dtype '" + word + "' (allowed: float32, float16, int64, int32)");
  return found->second;
}

TensorSpec read_spec(const Json& from) {
  TensorSpec spec{from.at("name"), read_dtype(from.at("dtype")), {}};
  for (const auto& size : from.at("shape")) {
    spec.shape.push_back(size == "batch" ? kBatch : size.get<std::int32_t>());
  }
  return spec;
}

std::vector<TensorSpec> read_specs(const Json& from) {
  std::vector<TensorSpec> specs;
  std::transform(from.begin(), from.end(), std::back_inserter(specs), read_spec);
  return specs;
}

Artifact read_artifact(const Json& from) {
  Artifact artifact;
  artifact.file = from.at("file");
  check_inside(artifact.file);
  artifact.function = get_or<std::string>(from, "function", "forward");
  artifact.data = get_or<std::vector<std::string>>(from, "data", {});
  for (const std::string& path : artifact.data) check_inside(path);
  return artifact;
}

Graph read_graph(const Json& from) {
  Graph graph;
  graph.inputs = read_specs(from.at("inputs"));
  graph.outputs = read_specs(from.at("outputs"));
  graph.carries_in = get_or<std::map<std::string, std::string>>(from, "carries_in", {});
  graph.carries_out = get_or<std::map<std::string, std::string>>(from, "carries_out", {});
  const Json artifacts = get_or<Json>(from, "artifacts", Json::object());
  for (const auto& [backend, artifact] : artifacts.items()) {
    graph.artifacts.emplace(backend, read_artifact(artifact));
  }
  return graph;
}

Row read_row(const Json& from) {
  Row row;
  const Json& update = from.at("update");
  row.timestep = from.at("timestep");
  row.input_scale = get_or(from, "input_scale", 1.0F);
  row.noise = get_or(update, "noise", 0.0F);
  row.x = update.at("x").get<std::vector<float>>();
  row.e = update.at("e").get<std::vector<float>>();
  if (has(update, "clip")) {
    const Json& clip = update["clip"];
    row.clip = Clip{clip.at("x"), clip.at("e"), clip.at("limit"), clip.at("weight")};
  }
  if (has(from, "graph")) row.graph = from["graph"].get<std::string>();
  if (has(from, "guidance")) row.guidance = from["guidance"].get<float>();
  row.held_guidance = get_or<std::vector<float>>(from, "held_guidance", {});
  row.mix = get_or<std::map<std::string, std::vector<float>>>(from, "mix", {});
  return row;
}

Program read_program(const Json& from) {
  Program program;
  if (has(from, "encode")) {
    const Json& stage = from["encode"];
    program.encode = Stage{stage.at("graph").get<std::string>(), stage.at("input"), stage.at("output"), 1, 0};
    program.tokens = from.at("tokenize").at("length");
  }
  if (has(from, "classes")) {
    program.classes = get_or<std::string>(from["classes"], "input", "class_labels");
    program.null_class = get_or(from["classes"], "null", 0);
  }
  const Json decode = get_or<Json>(from, "decode", Json::object());
  if (has(decode, "graph")) program.decode.graph = decode["graph"].get<std::string>();
  program.decode.input = get_or<std::string>(decode, "input", "z");
  program.decode.output = get_or<std::string>(decode, "output", "image");
  program.decode.scale = get_or(decode, "scale", 1.0F);
  program.decode.shift = get_or(decode, "shift", 0.0F);
  program.latent = from.at("latent").get<Shape>();
  program.init_scale = from.at("init_scale");
  program.batched = from.at("mode") == "batched";
  for (const auto& row : from.at("rows")) program.rows.push_back(read_row(row));
  return program;
}

void check_carries(const Manifest& manifest) {
  for (const auto& [name, graph] : manifest.graphs) {
    for (const auto& [carry, tensor] : graph.carries_in) {
      if (manifest.carries.count(carry) == 0) throw BadInput("graph '" + name + "' uses unknown carry '" + carry + "'");
    }
  }
}

Manifest read(const Json& from) {
  const auto version = from.at("schema_version").get<std::string>();
  if (version.rfind("1.", 0) != 0) {
    throw BadInput("schema_version '" + version + "' cannot be read: this runner reads 1.x; build the runner again");
  }
  Manifest manifest;
  manifest.name = from.at("name");
  manifest.kind = from.at("kind");
  for (const auto& [name, graph] : from.at("graphs").items()) manifest.graphs.emplace(name, read_graph(graph));
  const Json carries = get_or<Json>(from, "carries", Json::object());
  for (const auto& [name, spec] : carries.items()) {
    manifest.carries.emplace(name, read_spec(spec));
  }
  manifest.program = read_program(from.at("program"));
  check_carries(manifest);
  return manifest;
}

}  // namespace

Shape TensorSpec::sized(std::int32_t batch) const {
  Shape sizes = shape;
  std::replace(sizes.begin(), sizes.end(), kBatch, batch);
  return sizes;
}

std::optional<std::size_t> TensorSpec::batch_axis() const {
  const auto found = std::find(shape.begin(), shape.end(), kBatch);
  if (found == shape.end()) return std::nullopt;
  return static_cast<std::size_t>(found - shape.begin());
}

bool Program::is_guided() const {
  return std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.guidance.has_value(); });
}

const Graph& Manifest::graph(const std::string& wanted) const {
  const auto found = graphs.find(wanted);
  if (found == graphs.end())
    throw BadInput("manifest.json: the program runs graph '" + wanted + "', which does not exist");
  return found->second;
}

std::vector<std::pair<std::string, std::int32_t>> Manifest::used() const {
  std::vector<std::pair<std::string, std::int32_t>> found;
  const auto add = [&found](const std::string& graph_name, std::int32_t batch) {
    const auto pair = std::make_pair(graph_name, batch);
    if (std::find(found.begin(), found.end(), pair) == found.end()) found.push_back(pair);
  };
  if (program.encode) add(*program.encode->graph, 1);
  for (const Row& row : program.rows) {
    if (row.graph) add(*row.graph, row.guidance && program.batched ? 2 : 1);
  }
  if (program.decode.graph) add(*program.decode.graph, 1);
  return found;
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "manifest.json";
  std::ifstream stream(file);
  if (!stream) throw BadInput(file.string() + ": cannot be read; give the folder of a bundle");
  try {
    return read(Json::parse(stream));
  } catch (const Json::exception& error) {
    throw BadInput(file.string() + ": is not a manifest: " + error.what());
  } catch (const BadInput& error) {
    throw BadInput(file.string() + ": " + error.what());
  }
}

}  // namespace edgediff
