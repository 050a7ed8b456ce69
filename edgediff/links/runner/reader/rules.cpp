#include "rules.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "errors.hpp"
#include "finding.hpp"
#include "rules_program.hpp"

namespace edgediff {
namespace {

constexpr std::string_view kManifest = "manifest.json";

std::string lowered(std::string path) {
  std::transform(path.begin(), path.end(), path.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return path;
}

/// Rule 1.
void check_paths(const Manifest& manifest) {
  std::map<std::string, std::string> seen;
  for (const FileEntry& entry : manifest.files) {
    const std::string key = lowered(entry.path);
    const auto [before, fresh] = seen.emplace(key, entry.path);
    if (!fresh) {
      throw Refused("path",
                    "'" + before->second + "' and '" + entry.path + "' are one file where case is ignored; rename one");
    }
    if (key == kManifest) throw Refused("file", "lists '" + entry.path + "', but cannot hold its own hash");
  }
}

/// Rule 2.
class Listed {
 public:
  explicit Listed(const Manifest& manifest) {
    for (const FileEntry& entry : manifest.files) {
      files_.insert(entry.path);
      for (std::size_t end = entry.path.find('/'); end != std::string::npos; end = entry.path.find('/', end + 1)) {
        folders_.insert(entry.path.substr(0, end));
      }
    }
  }

  void check(const std::string& what, const std::string& path, bool may_be_folder) const {
    if (files_.count(path) != 0 || (may_be_folder && folders_.count(path) != 0)) return;
    throw Refused("file", what + " needs '" + path + "', which is not among the files");
  }

 private:
  std::set<std::string> files_, folders_;
};

void check_listed(const Manifest& manifest) {
  const Listed listed(manifest);
  listed.check("plan", manifest.plan, false);
  for (const auto& [name, tokenizer] : manifest.tokenizers) {
    listed.check("tokenizer '" + name + "'", tokenizer.vocab, false);
    listed.check("tokenizer '" + name + "'", tokenizer.merges, false);
  }
  for (const auto& [name, graph] : manifest.graphs) {
    for (const auto& [backend, artifact] : graph.artifacts) {
      const std::string what = "graph '" + name + "' on " + backend;
      listed.check(what, artifact.file, true);
      for (const std::string& path : artifact.chunks) listed.check(what, path, true);
      for (const std::string& path : artifact.data) listed.check(what, path, true);
    }
  }
}

/// Rule 3.
void check_names(const std::string& graph, const std::vector<TensorSpec>& tensors) {
  std::set<std::string> seen;
  for (const TensorSpec& tensor : tensors) {
    if (seen.insert(tensor.name).second) continue;
    throw Refused("tensor", "graph '" + graph + "' has two tensors '" + tensor.name + "' on one side");
  }
}

/// Rule 4.
void check_carries(const Manifest& manifest, const std::string& name, const Map<std::string>& carries,
                   const std::vector<TensorSpec>& tensors) {
  std::set<std::string> used;
  for (const auto& [carry, tensor] : carries) {
    const TensorSpec* known = manifest.carries.find(carry);
    if (known == nullptr) throw Refused("carry", "graph '" + name + "' uses unknown carry '" + carry + "'");
    const TensorSpec& spec = find_named(name, tensors, tensor);
    if (spec.dtype != known->dtype || spec.shape != known->shape) {
      throw Refused(
          "carry", "carry '" + carry + "' and tensor '" + tensor + "' of graph '" + name + "' differ in type or shape");
    }
    if (!used.insert(tensor).second) {
      throw Refused("carry", "tensor '" + tensor + "' of graph '" + name + "' is two carries");
    }
  }
}

/// Where a carry is kept: a file and a state of it, or nowhere but outside.
using Place = std::optional<std::pair<std::string, std::string>>;
using Places = std::map<std::string, Place>;

/// Rule 5, for one graph on one backend.
void place_carries(const std::string& name, const Graph& graph, const Artifact& artifact, Places& places) {
  std::set<std::string> carried;
  for (const Map<std::string>* ends : {&graph.carries_in, &graph.carries_out}) {
    for (const auto& [carry, tensor] : *ends) {
      carried.insert(tensor);
      const std::string* state = artifact.states.find(tensor);
      const Place place = state == nullptr ? Place() : Place({artifact.file, *state});
      if (places.emplace(carry, place).first->second == place) continue;
      throw Refused("carry",
                    "carry '" + carry + "' is in one state for some graphs, and not for others; see '" + name + "'");
    }
  }
  for (const auto& [tensor, state] : artifact.states) {
    if (carried.count(tensor) != 0) continue;
    throw Refused("carry", "graph '" + name + "' has a state for '" + tensor + "', which is no carry of it");
  }
}

/// Rule 5.
void check_states(const Manifest& manifest) {
  std::set<std::string> backends, mixed;
  for (const auto& [name, graph] : manifest.graphs) {
    for (const auto& [backend, artifact] : graph.artifacts) backends.insert(backend);
  }
  for (const auto& [name, program] : manifest.programs) {
    for (const Row& row : program.rows) {
      for (const auto& [carry, weights] : row.mix) mixed.insert(carry);
    }
  }
  for (const std::string& backend : backends) {
    Places places;
    for (const auto& [name, graph] : manifest.graphs) {
      const Artifact* artifact = graph.artifacts.find(backend);
      if (artifact != nullptr) place_carries(name, graph, *artifact, places);
    }
    std::set<Place> taken;
    for (const auto& [carry, place] : places) {
      if (!place) continue;
      if (!taken.insert(place).second) throw Refused("carry", "two carries are in one state on " + backend);
      if (mixed.count(carry) == 0) continue;
      throw Refused("carry", "a row mixes carry '" + carry + "', which is a state on " + backend +
                                 ": it has its newest value only");
    }
  }
}

/// Rule 6.
void check_encoder(const Manifest& manifest, const std::string& name, const Encoder& encoder) {
  const Tokenizer* tokenizer = manifest.tokenizers.find(encoder.tokenizer);
  if (tokenizer == nullptr) {
    throw Refused("tokenizer",
                  "encoder '" + name + "' needs tokenizer '" + encoder.tokenizer + "', which does not exist");
  }
  const Graph& graph = find_graph(manifest, encoder.graph);
  std::vector<const TensorSpec*> specs{&find_named(encoder.graph, graph.inputs, encoder.ids)};
  if (encoder.mask) specs.push_back(&find_named(encoder.graph, graph.inputs, *encoder.mask));
  for (const TensorSpec* spec : specs) {
    if (starts_with_batch(spec->shape) && spec->shape.size() == 2 && spec->shape[1] == tokenizer->length) continue;
    throw Refused("shape", "'" + spec->name + "' of graph '" + encoder.graph + "' is " + shape_text(spec->shape) +
                               "; a text is [1, " + std::to_string(tokenizer->length) + "]");
  }
  if (!is_integer(specs[0]->dtype)) {
    throw Refused("shape", "'" + encoder.ids + "' of graph '" + encoder.graph + "' must be int64 or int32");
  }
  for (const TensorSpec& spec : graph.inputs) {
    if (std::any_of(specs.begin(), specs.end(), [&spec](const auto* one) { return one->name == spec.name; })) continue;
    throw Refused("tensor", "graph '" + encoder.graph + "' of encoder '" + name + "' reads '" + spec.name +
                                "', which nothing feeds");
  }
}

const Encoder& find_encoder(const Manifest& manifest, const std::string& condition, const std::string& name) {
  const Encoder* encoder = manifest.encoders.find(name);
  if (encoder != nullptr) return *encoder;
  throw Refused("condition", "'" + condition + "' comes from encoder '" + name + "', which does not exist");
}

/// Rule 7.
void check_condition(const Manifest& manifest, const std::string& name, const Condition& condition) {
  for (const TextOutput& output : condition.outputs) {
    const std::string& graph = find_encoder(manifest, name, output.encoder).graph;
    find_named(graph, find_graph(manifest, graph).outputs, output.output);
  }
  if (condition.from == From::text_mask) find_encoder(manifest, name, condition.encoder);
  if (condition.null.value_or(0) > condition.count) {
    throw Refused("condition", "'" + name + "': null is above count");
  }
  if (condition.names.empty()) return;
  const std::set<std::string> different(condition.names.begin(), condition.names.end());
  const auto wanted = static_cast<std::size_t>(condition.count);
  if (condition.names.size() != wanted || different.size() != wanted) {
    throw Refused("condition", "'" + name + "' has " + std::to_string(condition.names.size()) + " names, of which " +
                                   std::to_string(different.size()) + " differ, for " + std::to_string(wanted) +
                                   " classes");
  }
}

struct Ends {
  const TensorSpec *input, *output;
};

/// A stage's graph, which has one input.
Ends check_single(const Manifest& manifest, const std::string& name, const std::string& input,
                  const std::string& output) {
  const Graph& graph = find_graph(manifest, name);
  const Ends ends{&find_named(name, graph.inputs, input), &find_named(name, graph.outputs, output)};
  if (graph.inputs.size() > 1) throw Refused("tensor", "graph '" + name + "' reads more than '" + input + "'");
  return ends;
}

/// Rule 8; the tensor that is decoded, nullptr without a graph.
const TensorSpec* check_decoder(const Manifest& manifest) {
  const Decoder& decoder = manifest.decoder;
  const TensorSpec* result = nullptr;
  if (decoder.graph && decoder.input && decoder.output) {
    result = check_single(manifest, *decoder.graph, *decoder.input, *decoder.output).output;
  } else if (decoder.graph || decoder.input || decoder.output) {
    throw Refused("decoder", "the decoder has a graph, its input and its output, or none of them");
  }
  if (manifest.is_audio != decoder.sample_rate.has_value()) {
    throw Refused("decoder", "the decoder has a sample_rate exactly when the bundle makes audio");
  }
  return result;
}

/// Rule 9, of the preview.
void check_preview(const Manifest& manifest, const Preview& preview) {
  const bool graph = preview.graph && preview.input && preview.output, linear = preview.weights && preview.bias;
  const bool some_graph = preview.graph || preview.input || preview.output;
  const bool some_linear = preview.weights || preview.bias;
  if (graph == linear || (graph && some_linear) || (linear && some_graph)) {
    throw Refused("preview", "a preview has a graph with its input and output, or weights with a bias, and not both");
  }
  if (graph) check_single(manifest, *preview.graph, *preview.input, *preview.output);
}

/// Rules 8 to 10.
void check_stages(const Manifest& manifest) {
  const TensorSpec* result = check_decoder(manifest);
  Ends encoder{}, safety{};
  const TensorSpec* deviation = nullptr;
  if (const auto& picture = manifest.picture) {
    encoder = check_single(manifest, picture->graph, picture->input, picture->mean);
    const auto& outputs = find_graph(manifest, picture->graph).outputs;
    if (picture->deviation) deviation = &find_named(picture->graph, outputs, *picture->deviation);
  }
  if (const auto& one = manifest.safety) safety = check_single(manifest, one->graph, one->input, one->output);
  if (manifest.preview) check_preview(manifest, *manifest.preview);
  if (const auto& picture = manifest.picture) {
    const Shape wanted{3, picture->size[0], picture->size[1]}, &shape = encoder.input->shape;
    if (!is_float(encoder.input->dtype) || !starts_with_batch(shape) || inner(shape) != wanted) {
      throw Refused("shape", "'" + picture->input + "' of graph '" + picture->graph + "' is " + shape_text(shape) +
                                 ", not [batch, 3, height, width] of the picture's size in floating point");
    }
    if (deviation != nullptr && deviation->shape != encoder.output->shape) {
      throw Refused("shape", "mean and deviation of graph '" + picture->graph + "' differ in shape");
    }
  }
  if (safety.input != nullptr && (result == nullptr || inner(safety.input->shape) != inner(result->shape))) {
    throw Refused("shape",
                  "the safety checker reads " + shape_text(safety.input->shape) + ", which is not what is decoded");
  }
}

}  // namespace

void check_rules(const Manifest& manifest) {
  check_paths(manifest);
  check_listed(manifest);
  for (const auto& [name, graph] : manifest.graphs) {
    check_names(name, graph.inputs);
    check_names(name, graph.outputs);
  }
  for (const auto& [name, graph] : manifest.graphs) {
    check_carries(manifest, name, graph.carries_in, graph.inputs);
    check_carries(manifest, name, graph.carries_out, graph.outputs);
  }
  check_states(manifest);
  for (const auto& [name, encoder] : manifest.encoders) check_encoder(manifest, name, encoder);
  for (const auto& [name, condition] : manifest.conditions) check_condition(manifest, name, condition);
  check_stages(manifest);
  if (!manifest.programs.has(manifest.default_program)) {
    throw Refused("program", "the default program '" + manifest.default_program + "' does not exist");
  }
  for (const auto& [name, program] : manifest.programs) {
    try {
      check_program(manifest, program);
    } catch (const Refused& error) {
      throw Refused(error.code, "program '" + name + "': " + error.what());
    }
  }
}

}  // namespace edgediff
