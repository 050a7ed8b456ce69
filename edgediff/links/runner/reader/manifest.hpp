// `manifest.json`, version 2.0, as typed as docs/format.md has it (section 5). What no runner uses is read, judged and
// not kept.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fields.hpp"

namespace edgediff {

using fields::Map;
using Shape = std::vector<std::int32_t>;

constexpr std::int32_t kBatch = -1;  // in a shape: 1, or 2 where both sides run in one call

enum class DType { float32, float16, int64, int32 };

bool is_float(DType dtype);
bool is_integer(DType dtype);

struct Added {
  std::string content;
  std::vector<std::int64_t> ids;
};

struct Tokenizer {
  std::string vocab, merges;
  std::int64_t length = 0;
  std::string begin, end, pad, unknown;
  std::vector<Added> added;
};

/// A tensor of a graph, or a carry (without a name).
struct TensorSpec {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;

  Shape sized(std::int32_t batch) const;
  /// The axis that is the batch, if there is one.
  std::optional<std::size_t> batch_axis() const;
};

struct Artifact {
  std::string file;
  std::optional<std::string> function;
  std::vector<std::string> data, chunks;
  Map<std::string> states;  // tensor -> state
};

struct Graph {
  std::vector<TensorSpec> inputs, outputs;
  Map<std::string> carries_in, carries_out;  // carry -> tensor
  Map<Artifact> artifacts;                   // by backend

  /// Those that are no carries.
  std::vector<const TensorSpec*> free_inputs() const;
  std::vector<const TensorSpec*> free_outputs() const;
};

struct Encoder {
  std::string tokenizer, graph, ids;
  std::optional<std::string> mask;
};

enum class From {
  latent,
  timestep,
  guidance,
  picture,
  masked_picture,
  mask,
  text,
  text_mask,
  class_label,
  constant,
};

/// The output of an encoder.
struct TextOutput {
  std::string encoder, output;
};

struct Condition {
  From from = From::latent;
  std::vector<TextOutput> outputs;  // text
  bool zeros = false;               // text: what an empty negative prompt becomes
  std::string encoder;              // text_mask
  std::int64_t count = 0;           // class_label, and the next two
  std::optional<std::int64_t> null;
  std::vector<std::string> names;
  std::vector<double> values;  // constant
  std::optional<std::vector<double>> empty;
};

struct Decoder {
  std::optional<std::string> graph, input, output;
  double scale = 1, shift = 0;
  std::optional<std::int64_t> sample_rate;
};

struct PictureEncoder {
  std::string graph, input, mean;
  std::optional<std::string> deviation;
  double scale = 1, shift = 0;
  Shape size;  // height, width
};

struct Safety {
  std::string graph, input, output;
  double threshold = 0;
};

struct Preview {
  std::optional<std::string> graph, input, output;
  std::optional<std::vector<std::vector<double>>> weights;
  std::optional<std::vector<double>> bias;
};

struct Clip {
  double x, e, limit, weight;
};

struct Update {
  std::vector<double> x, e;
  double noise = 0;
  std::optional<Clip> clip;
};

/// A guidance scale: a number, or what the caller asked for.
struct Guidance {
  std::optional<double> number;
};

struct Held {
  std::vector<double> weights;
  bool times_scale_minus_one = false;
};

struct Blend {
  double picture, noise;
};

struct Row {
  double timestep = 0, input_scale = 1;
  Update update;
  std::optional<std::string> graph;
  std::optional<Guidance> guidance;
  std::optional<Held> held;
  Map<std::vector<double>> mix;
  std::optional<Blend> blend;
};

struct Init {
  double noise = 0, picture = 0;
};

struct Scale {
  double scale, low, high;
};

enum class Takes { prompt, negative_prompt, picture, mask };

struct Program {
  std::vector<Takes> takes;
  std::optional<double> strength;
  Shape latent;  // without batch
  Init init;
  bool batched = true;
  std::optional<Scale> guidance, embedded_guidance;
  std::vector<Row> rows;

  bool takes_one(Takes what) const;
  /// Whether some row runs both sides.
  bool is_guided() const;
  /// Whether some row keeps what lies outside the mask.
  bool blends() const;
  /// Graphs of the rows, in the order of first use.
  std::vector<std::string> graphs() const;
};

struct FileEntry {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  std::string name;
  bool is_audio = false, is_philox = false;
  Map<Tokenizer> tokenizers;
  Map<TensorSpec> carries;
  Map<Graph> graphs;
  Map<Encoder> encoders;
  Map<Condition> conditions;
  Decoder decoder;
  std::optional<PictureEncoder> picture;
  std::optional<Safety> safety;
  std::optional<Preview> preview;
  Map<Program> programs;
  std::string default_program, plan;
  std::vector<FileEntry> files;
};

/// The tensor of this name, nullptr where there is none.
const TensorSpec* find_tensor(const std::vector<TensorSpec>& tensors, const std::string& name);

/// Steps 2 to 4 of section 2: the text, the version, the keys. Throws Refused.
Manifest parse_manifest(std::string_view text);

/// Steps 2 to 5: also the rules between keys. Throws Refused.
Manifest read_manifest(std::string_view text);

}  // namespace edgediff
