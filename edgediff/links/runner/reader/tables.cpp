#include "tables.hpp"

#include "tables_program.hpp"

namespace edgediff::tables {
namespace {

using fields::Fields;
using fields::flag;
using fields::list_of;
using fields::map_of;
using fields::name;
using fields::number;
using fields::path;
using fields::refuse;
using fields::short_text;
using fields::text;
using fields::Where;
using fields::whole;
using fields::word;
using json::Value;

constexpr std::int64_t kLargestCount = (std::int64_t{1} << 53) - 1, kLargestTensor = 1 << 28;
constexpr std::int64_t kLargestId = 1 << 24, kMost = 1 << 20;

const auto count = whole(0, kLargestCount);

Added read_added(const Value& value, const Where& where) {
  Fields from(value, where);
  Added added;
  added.content = from.need("content", short_text(1));
  added.ids = from.need("ids", list_of(whole(0, kLargestId), 1, 64));
  for (const char* key : {"normalized", "single_word", "left_strip", "right_strip"}) from.get_or(key, false, flag);
  from.done();
  return added;
}

Tokenizer read_tokenizer(const Value& value, const Where& where) {
  Fields from(value, where);
  Tokenizer tokenizer;
  from.need("kind", [](const Value& v, const Where& w) { return word<bool>(v, w, {{"clip", true}}); });
  tokenizer.vocab = from.need("vocab", path);
  tokenizer.merges = from.need("merges", path);
  tokenizer.length = from.need("length", whole(2, 4096));
  tokenizer.begin = from.need("begin", short_text(1));
  tokenizer.end = from.need("end", short_text(1));
  tokenizer.pad = from.need("pad", short_text(1));
  tokenizer.unknown = from.need("unknown", short_text(1));
  tokenizer.added = from.get_or("added", {}, list_of(read_added, 0, 4096));
  from.done();
  return tokenizer;
}

DType read_dtype(const Value& value, const Where& where) {
  return word<DType>(
      value, where,
      {{"float32", DType::float32}, {"float16", DType::float16}, {"int64", DType::int64}, {"int32", DType::int32}});
}

std::int32_t read_size(const Value& value, const Where& where) {
  if (value.text() != nullptr) return word<std::int32_t>(value, where, {{"batch", kBatch}});
  return static_cast<std::int32_t>(fields::whole_in(value, where, 1, kMost));
}

Shape read_shape(const Value& value, const Where& where) {
  Shape shape = list_of(read_size, 0, 6)(value, where);
  if (std::count(shape.begin(), shape.end(), kBatch) > 1) refuse("value", where, "'batch' stands once in a shape");
  std::int64_t elements = 1;
  for (const std::int32_t size : shape) {
    elements *= size == kBatch ? 2 : size;
    if (elements > kLargestTensor) refuse("value", where, "a tensor has at most 2^28 elements");
  }
  return shape;
}

TensorSpec read_tensor(const Value& value, const Where& where) {
  Fields from(value, where);
  TensorSpec spec;
  spec.name = from.need("name", name);
  spec.dtype = from.need("dtype", read_dtype);
  spec.shape = from.need("shape", read_shape);
  from.done();
  return spec;
}

TensorSpec read_carry(const Value& value, const Where& where) {
  Fields from(value, where);
  TensorSpec spec;
  spec.dtype = from.need("dtype", read_dtype);
  spec.shape = from.need("shape", read_shape);
  from.done();
  return spec;
}

bool read_precision(const Value& value, const Where& where) {
  return word<bool>(value, where,
                    {{"fp32", true},
                     {"tf32", true},
                     {"fp16", true},
                     {"bf16", true},
                     {"w8", true},
                     {"w8a8", true},
                     {"w8a16", true},
                     {"w4", true},
                     {"w4a8", true}});
}

Artifact read_artifact(const Value& value, const Where& where) {
  Fields from(value, where);
  Artifact artifact;
  artifact.file = from.need("file", path);
  artifact.function = from.maybe("function", short_text(0));
  from.need("precision", read_precision);
  artifact.data = from.get_or("data", {}, list_of(path, 0, 64));
  artifact.chunks = from.get_or("chunks", {}, list_of(path, 0, 64));
  from.get_or("delegates", {}, map_of(count, 0, 512));
  from.get_or("outside", {}, map_of(count, 0, 512));
  from.maybe("memory_bytes", count);
  artifact.states = from.get_or("states", {}, map_of(name, 0, 512));
  from.done();
  return artifact;
}

Graph read_graph(const Value& value, const Where& where) {
  Fields from(value, where);
  Graph graph;
  from.need("component", name);
  graph.inputs = from.need("inputs", list_of(read_tensor, 1, 512));
  graph.outputs = from.need("outputs", list_of(read_tensor, 1, 512));
  graph.carries_in = from.get_or("carries_in", {}, map_of(name, 0, 512));
  graph.carries_out = from.get_or("carries_out", {}, map_of(name, 0, 512));
  from.get_or("parameters", 0, count);
  from.get_or("macs", 0, count);
  graph.artifacts = from.get_or("artifacts", {}, map_of(read_artifact, 0, 16));
  from.done();
  return graph;
}

Encoder read_encoder(const Value& value, const Where& where) {
  Fields from(value, where);
  Encoder encoder;
  encoder.tokenizer = from.need("tokenizer", name);
  encoder.graph = from.need("graph", name);
  encoder.ids = from.need("ids", name);
  encoder.mask = from.maybe("mask", name);
  from.done();
  return encoder;
}

From read_from(const Value& value, const Where& where) {
  return word<From>(value, where,
                    {{"latent", From::latent},
                     {"timestep", From::timestep},
                     {"guidance", From::guidance},
                     {"picture", From::picture},
                     {"masked_picture", From::masked_picture},
                     {"mask", From::mask},
                     {"text", From::text},
                     {"text_mask", From::text_mask},
                     {"class", From::class_label},
                     {"constant", From::constant}});
}

TextOutput read_text_output(const Value& value, const Where& where) {
  Fields from(value, where);
  TextOutput output;
  output.encoder = from.need("encoder", name);
  output.output = from.need("output", name);
  from.done();
  return output;
}

bool read_zeros(const Value& value, const Where& where) {
  return word<bool>(value, where, {{"encode", false}, {"zeros", true}});
}

Condition read_condition(const Value& value, const Where& where) {
  const auto numbers = list_of(number, 1, 4096);
  Fields from(value, where);
  Condition condition;
  condition.from = from.need("from", read_from);
  switch (condition.from) {
    case From::text:
      condition.outputs = from.need("outputs", list_of(read_text_output, 1, 8));
      condition.zeros = from.get_or("empty", false, read_zeros);
      break;
    case From::text_mask: condition.encoder = from.need("encoder", name); break;
    case From::class_label:
      condition.count = from.need("count", whole(1, kMost));
      condition.null = from.maybe("null", whole(0, kMost));
      condition.names = from.get_or("names", {}, list_of(text, 0, kMost));
      break;
    case From::constant:
      condition.values = from.need("values", numbers);
      condition.empty = from.maybe("empty", numbers);
      break;
    default: break;
  }
  from.done();
  return condition;
}

Decoder read_decoder(const Value& value, const Where& where) {
  Fields from(value, where);
  Decoder decoder;
  decoder.graph = from.maybe("graph", name);
  decoder.input = from.maybe("input", name);
  decoder.output = from.maybe("output", name);
  decoder.scale = from.get_or("scale", 1, number);
  decoder.shift = from.get_or("shift", 0, number);
  decoder.sample_rate = from.maybe("sample_rate", whole(1, 1'000'000));
  from.done();
  return decoder;
}

PictureEncoder read_picture(const Value& value, const Where& where) {
  Fields from(value, where);
  PictureEncoder picture;
  picture.graph = from.need("graph", name);
  picture.input = from.need("input", name);
  picture.mean = from.need("mean", name);
  picture.deviation = from.maybe("deviation", name);
  picture.scale = from.get_or("scale", 1, number);
  picture.shift = from.get_or("shift", 0, number);
  const auto size = from.need("size", list_of(whole(1, 1 << 14), 2, 2));
  picture.size.assign(size.begin(), size.end());
  from.done();
  return picture;
}

Safety read_safety(const Value& value, const Where& where) {
  Fields from(value, where);
  Safety safety;
  safety.graph = from.need("graph", name);
  safety.input = from.need("input", name);
  safety.output = from.need("output", name);
  safety.threshold = from.need("threshold", number);
  from.done();
  return safety;
}

Preview read_preview(const Value& value, const Where& where) {
  const auto colour = list_of(number, 3, 3);
  Fields from(value, where);
  Preview preview;
  preview.graph = from.maybe("graph", name);
  preview.input = from.maybe("input", name);
  preview.output = from.maybe("output", name);
  preview.weights = from.maybe("weights", list_of(colour, 1, 64));
  preview.bias = from.maybe("bias", colour);
  from.done();
  return preview;
}

std::string read_hash(const Value& value, const Where& where) {
  std::string found = text(value, where);
  if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != std::string::npos) {
    refuse("value", where, "must be 64 hexadecimal digits in lower case");
  }
  return found;
}

FileEntry read_file(const Value& value, const Where& where) {
  Fields from(value, where);
  FileEntry entry;
  entry.path = from.need("path", path);
  entry.bytes = from.need("bytes", count);
  entry.sha256 = from.need("sha256", read_hash);
  from.done();
  return entry;
}

bool judge_denoiser(const Value& value, const Where& where) {
  Fields from(value, where);
  from.need("folder", text);
  from.need("weights", text);
  from.done();
  return true;
}

bool judge_source(const Value& value, const Where& where) {
  Fields from(value, where);
  from.need("model", text);
  from.need("weights", text);
  from.get_or("licence", {}, text);
  from.maybe("revision", text);
  from.maybe("pipeline", text);
  from.maybe("denoiser", judge_denoiser);
  from.done();
  return true;
}

bool judge_object(const Value& value, const Where& where) {
  if (value.object() == nullptr) refuse("value", where, "must be an object");
  return true;
}

bool read_makes(const Value& value, const Where& where) {
  return word<bool>(value, where, {{"image", false}, {"audio", true}});
}

bool read_stream(const Value& value, const Where& where) {
  return word<bool>(value, where, {{"mt19937", false}, {"philox", true}});
}

}  // namespace

Manifest read_manifest(const Value& value) {
  const Where root;
  Fields from(value, root);
  Manifest manifest;
  from.need("schema_version", text);
  manifest.name = from.need("name", name);
  manifest.is_audio = from.need("makes", read_makes);
  manifest.is_philox = from.get_or("rng", false, read_stream);
  manifest.tokenizers = from.get_or("tokenizers", {}, map_of(read_tokenizer, 0, 8));
  manifest.carries = from.get_or("carries", {}, map_of(read_carry, 0, 4096));
  manifest.graphs = from.need("graphs", map_of(read_graph, 1, 256));
  manifest.encoders = from.get_or("encoders", {}, map_of(read_encoder, 0, 8));
  manifest.conditions = from.need("conditions", map_of(read_condition, 1, 64));
  manifest.decoder = from.need("decoder", read_decoder);
  manifest.picture = from.maybe("picture", read_picture);
  manifest.safety = from.maybe("safety", read_safety);
  manifest.preview = from.maybe("preview", read_preview);
  manifest.programs = from.need("programs", map_of(read_program, 1, 64));
  manifest.default_program = from.need("default", name);
  manifest.plan = from.get_or("plan", "plan.json", path);
  manifest.files = from.need("files", list_of(read_file, 1, 65'536));
  from.need("source", judge_source);
  from.get_or("tools", {}, map_of(text, 0, 64));
  from.get_or("evidence", true, judge_object);
  from.done();
  return manifest;
}

}  // namespace edgediff::tables
