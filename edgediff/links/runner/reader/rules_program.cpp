#include "rules_program.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "errors.hpp"
#include "finding.hpp"

namespace edgediff {
namespace {

constexpr std::int64_t kNoLength = -1;

std::string at_row(std::size_t index) { return "row " + std::to_string(index) + " "; }

class ProgramRules {
 public:
  ProgramRules(const Manifest& manifest, const Program& program)
      : manifest_(manifest), program_(program), graphs_(program.graphs()) {
    for (const Row& row : program.rows) {
      if (row.graph && row.guidance) guided_.insert(*row.graph);
    }
  }

  void check() {
    check_graphs();
    for (const std::string& name : graphs_) check_inputs(name, find_graph(manifest_, name));
    for (const std::string& name : graphs_) check_shapes(name, find_graph(manifest_, name));
    check_result();
    check_takes();
    check_pictures();
    check_scales();
    check_guidance();
    check_held();
    check_carries();
    check_history();
  }

 private:
  /// Rule 13.
  void check_graphs() const {
    if (graphs_.empty()) throw Refused("graph", "no row runs a graph");
    for (const std::string& name : graphs_) find_graph(manifest_, name);
  }

  /// Rule 14.
  void check_inputs(const std::string& name, const Graph& graph) {
    std::map<From, int> sources;
    for (const TensorSpec* spec : graph.free_inputs()) {
      const Condition* condition = manifest_.conditions.find(spec->name);
      if (condition == nullptr) {
        throw Refused("condition", "graph '" + name + "' reads '" + spec->name + "', which has no condition");
      }
      conditions_[spec->name] = condition;
      ++sources[condition->from];
    }
    if (sources[From::latent] != 1 || sources[From::timestep] > 1) {
      throw Refused("condition", "graph '" + name + "' must read the latent once, and the time at most once");
    }
    if (graph.free_outputs().size() != 1) {
      throw Refused("tensor", "graph '" + name + "' must have one output that is no carry, the prediction");
    }
  }

  /// Rule 15.
  void check_shapes(const std::string& name, const Graph& graph) const {
    const bool both = program_.batched && guided_.count(name) != 0;
    for (const TensorSpec* spec : graph.free_inputs()) {
      const Condition& condition = *conditions_.at(spec->name);
      const std::string what = "'" + spec->name + "' of graph '" + name + "' ";
      if (!fits(*spec, condition)) {
        throw Refused("shape", what + "is " + shape_text(spec->shape) + ", which its condition does not give");
      }
      const bool same = condition.from == From::timestep || condition.from == From::guidance;
      if (both && !same && spec->shape[0] != kBatch) {
        throw Refused("shape", what + "has no batch, but guided rows run both sides at once");
      }
    }
    const TensorSpec& prediction = *graph.free_outputs().front();
    if (!is_float(prediction.dtype) || !is_latent(prediction.shape, program_) ||
        (both && prediction.shape[0] != kBatch)) {
      throw Refused("shape", "graph '" + name + "' puts out " + shape_text(prediction.shape) + "; the latent is " +
                                 shape_text(program_.latent));
    }
  }

  /// Whether a tensor has the type and shape of what its condition gives.
  bool fits(const TensorSpec& spec, const Condition& condition) const {
    const Shape& shape = spec.shape;
    if (!starts_with_batch(shape) || std::count(shape.begin() + 1, shape.end(), kBatch) != 0) return false;
    switch (condition.from) {
      case From::class_label: return spec.dtype == DType::int64 && shape.size() == 1;
      case From::text_mask: return shape.size() == 2 && shape[1] == length(condition);
      case From::timestep:
      case From::guidance: return is_float(spec.dtype) && shape.size() == 1;
      case From::latent: return is_float(spec.dtype) && is_latent(shape, program_);
      case From::constant: return is_float(spec.dtype) && fits_constant(shape, condition);
      case From::text: return is_float(spec.dtype) && fits_text(shape, condition);
      case From::mask: {
        Shape wanted = program_.latent;
        wanted[0] = 1;
        return is_float(spec.dtype) && inner(shape) == wanted;
      }
      case From::picture:
      case From::masked_picture: return is_float(spec.dtype) && fits_picture(shape);
    }
    return false;
  }

  std::int64_t length(const Condition& condition) const {
    const Encoder* encoder = manifest_.encoders.find(condition.encoder);
    const Tokenizer* tokenizer = encoder == nullptr ? nullptr : manifest_.tokenizers.find(encoder->tokenizer);
    return tokenizer == nullptr ? kNoLength : tokenizer->length;
  }

  static bool fits_constant(const Shape& shape, const Condition& condition) {
    std::size_t elements = 1;
    for (const std::int32_t size : inner(shape)) elements *= static_cast<std::size_t>(size);
    return condition.values.size() == elements && (!condition.empty || condition.empty->size() == elements);
  }

  /// Whether a shape is that of the joined outputs.
  bool fits_text(const Shape& shape, const Condition& condition) const {
    Shape wanted = inner(shape);
    if (wanted.empty()) return false;
    std::int64_t joined = 0;
    for (const TextOutput& output : condition.outputs) {
      const Graph& graph = find_graph(manifest_, manifest_.encoders.find(output.encoder)->graph);
      const TensorSpec& spec = find_named({}, graph.outputs, output.output);
      Shape given = inner(spec.shape);
      const bool batched = std::count(given.begin(), given.end(), kBatch) != 0;
      if (!is_float(spec.dtype) || !starts_with_batch(spec.shape) || given.empty() || batched) return false;
      joined += given.back();
      given.back() = wanted.back();
      if (given != wanted) return false;
    }
    return joined == wanted.back();
  }

  bool fits_picture(const Shape& shape) const {
    const Shape given = inner(shape);
    if (given.size() < 2 || inner(given) != inner(program_.latent)) return false;
    return !manifest_.picture || given == inner(mean().shape);
  }

  const TensorSpec& mean() const {
    const PictureEncoder& picture = *manifest_.picture;
    return find_named(picture.graph, find_graph(manifest_, picture.graph).outputs, picture.mean);
  }

  /// Rule 16.
  void check_result() const {
    const Decoder& decoder = manifest_.decoder;
    Shape result = program_.latent;
    if (decoder.graph) {
      const Graph& graph = find_graph(manifest_, *decoder.graph);
      const TensorSpec& read = find_named(*decoder.graph, graph.inputs, *decoder.input);
      if (!is_float(read.dtype) || !is_latent(read.shape, program_)) {
        throw Refused("shape",
                      "the decoder reads " + shape_text(read.shape) + "; the latent is " + shape_text(program_.latent));
      }
      result = inner(find_named(*decoder.graph, graph.outputs, *decoder.output).shape);
    }
    const bool good =
        manifest_.is_audio ? result.size() == 2 : result.size() == 3 && (result[0] == 1 || result[0] == 3);
    if (!good) {
      throw Refused("shape", "what is decoded is " + shape_text(result) +
                                 "; a picture has 1 or 3 channels, height and width, a sound channels and samples");
    }
    if (manifest_.preview) check_preview(*manifest_.preview);
  }

  /// The end of rule 16.
  void check_preview(const Preview& preview) const {
    if (!preview.graph) {
      const std::size_t channels = preview.weights->size();
      if (program_.latent.size() == 3 && channels == static_cast<std::size_t>(program_.latent[0])) return;
      throw Refused("shape", "the preview has weights for " + std::to_string(channels) + " channels; the latent is " +
                                 shape_text(program_.latent));
    }
    const Graph& graph = find_graph(manifest_, *preview.graph);
    const TensorSpec& read = find_named(*preview.graph, graph.inputs, *preview.input);
    const Shape& made = find_named(*preview.graph, graph.outputs, *preview.output).shape;
    if (!is_float(read.dtype) || !is_latent(read.shape, program_)) {
      throw Refused("shape",
                    "the preview reads " + shape_text(read.shape) + "; the latent is " + shape_text(program_.latent));
    }
    if (made.size() != 4 || (made[1] != 1 && made[1] != 3)) {
      throw Refused("shape",
                    "the preview puts out " + shape_text(made) + "; a picture has 1 or 3 channels, height and width");
    }
  }

  bool reads(From from) const {
    return std::any_of(conditions_.begin(), conditions_.end(),
                       [from](const auto& one) { return one.second->from == from; });
  }

  bool adds_picture() const { return program_.init.picture != 0 || program_.blends(); }

  /// Rule 17.
  void check_takes() const {
    const std::set<Takes> different(program_.takes.begin(), program_.takes.end());
    if (different.size() != program_.takes.size()) throw Refused("takes", "takes names one thing twice");
    const bool text = reads(From::text), masked = reads(From::masked_picture);
    const auto check = [this](Takes what, bool needed, const std::string& word) {
      if (program_.takes_one(what) == needed) return;
      throw Refused("takes", needed ? "must take " + word + ", which its rows and conditions need"
                                    : "takes " + word + ", which its rows and conditions do not use");
    };
    check(Takes::prompt, text || reads(From::text_mask) || reads(From::class_label), "prompt");
    check(Takes::picture, adds_picture() || reads(From::picture) || masked, "picture");
    check(Takes::mask, program_.blends() || reads(From::mask) || masked, "mask");
    if (program_.takes_one(Takes::negative_prompt) && !(text && program_.is_guided())) {
      throw Refused("takes", "takes negative_prompt, which only a guided row with a text can use");
    }
  }

  /// Rule 18.
  void check_pictures() const {
    if (!program_.takes_one(Takes::picture) && !program_.takes_one(Takes::mask)) return;
    if (!manifest_.picture) {
      throw Refused("takes", "takes a picture or a mask, but the bundle has no encoder of pictures");
    }
    if (adds_picture() && !is_latent(mean().shape, program_)) {
      throw Refused("shape", "the encoder of pictures puts out " + shape_text(mean().shape) + "; the latent is " +
                                 shape_text(program_.latent));
    }
  }

  /// Rule 19.
  void check_scales() const {
    for (const auto* scale : {&program_.guidance, &program_.embedded_guidance}) {
      if (!*scale || ((*scale)->low <= (*scale)->scale && (*scale)->scale <= (*scale)->high)) continue;
      throw Refused("guidance", "a guidance scale lies outside its range, low to high");
    }
  }

  /// Rule 20.
  void check_guidance() const {
    const bool asks = std::any_of(program_.rows.begin(), program_.rows.end(), [](const Row& row) {
      return (row.guidance && !row.guidance->number) || (row.held && row.held->times_scale_minus_one);
    });
    if (asks && !program_.guidance) {
      throw Refused("guidance", "a row follows the asked guidance, but the program states none");
    }
    if (reads(From::guidance) && !program_.embedded_guidance) {
      throw Refused("guidance", "a graph reads the guidance, but the program states no embedded_guidance");
    }
    if (!program_.is_guided()) return;
    for (const auto& [name, condition] : conditions_) {
      if (condition->from == From::class_label && !condition->null) {
        throw Refused("guidance", "a row is guided, but '" + name + "' has no class of no class");
      }
    }
    if (!reads(From::text) && !reads(From::class_label)) {
      throw Refused("guidance", "a row is guided, but there is no text and no class to guide from");
    }
  }

  /// Rule 21.
  void check_held() const {
    bool ran = false;
    std::size_t guided = 0, index = 0;
    for (const Row& row : program_.rows) {
      const std::string here = at_row(index++);
      if (!row.graph) {
        if (row.guidance || row.held) throw Refused("guidance", here + "runs no graph, but has guidance");
        if (row.mix.size() != 0) throw Refused("carry", here + "runs no graph, but mixes a carry");
        if (!ran) throw Refused("carry_before_write", here + "holds the output before any graph has run");
        continue;
      }
      ran = true;
      if (row.held && row.guidance) throw Refused("guidance", here + "holds guidance and has its own");
      if (row.held && row.held->weights.size() > guided) {
        throw Refused("carry_before_write", here + "holds the guidance of more rows than were guided before");
      }
      guided += row.guidance ? 1 : 0;
    }
  }

  /// Rule 22.
  void check_carries() const {
    std::map<std::string, std::vector<bool>> written;  // whether a guided row wrote it, the newest last
    std::size_t index = 0;
    for (const Row& row : program_.rows) {
      const std::string here = at_row(index++);
      if (!row.graph) continue;
      const Graph& graph = find_graph(manifest_, *row.graph);
      for (const auto& [carry, weights] : row.mix) {
        if (!graph.carries_in.has(carry)) {
          throw Refused("carry", here + "mixes '" + carry + "', which graph '" + *row.graph + "' does not read");
        }
        if (weights.size() > written[carry].size()) {
          throw Refused("carry_before_write", here + "mixes more values of '" + carry + "' than were written");
        }
      }
      for (const auto& [carry, tensor] : graph.carries_in) check_read(here, row, carry, written[carry]);
      for (const auto& [carry, tensor] : graph.carries_out) written[carry].push_back(row.guidance.has_value());
    }
  }

  static void check_read(const std::string& here, const Row& row, const std::string& carry,
                         const std::vector<bool>& written) {
    if (written.empty()) {
      throw Refused("carry_before_write", here + "reads carry '" + carry + "' before any row writes it");
    }
    const std::vector<double>* mix = row.mix.find(carry);
    const auto depth = static_cast<std::ptrdiff_t>(mix == nullptr ? 1 : mix->size());
    if (row.guidance && std::find(written.end() - depth, written.end(), false) != written.end()) {
      throw Refused("carry", here + "is guided, but carry '" + carry + "' was written without guidance");
    }
  }

  /// Rule 23.
  void check_history() const {
    std::size_t index = 0;
    for (const Row& row : program_.rows) {
      const std::string here = at_row(index++);
      if (row.update.x.size() <= index && row.update.e.size() <= index) continue;
      throw Refused("history", here + "reaches back beyond the first row; at most " + std::to_string(index) +
                                   " coefficients can be there");
    }
  }

  const Manifest& manifest_;
  const Program& program_;
  const std::vector<std::string> graphs_;
  std::set<std::string> guided_;
  std::map<std::string, const Condition*> conditions_;  // those that this program's graphs read
};

}  // namespace

void check_program(const Manifest& manifest, const Program& program) { ProgramRules(manifest, program).check(); }

}  // namespace edgediff
