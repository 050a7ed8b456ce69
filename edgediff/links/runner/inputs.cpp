#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "reader/errors.hpp"
#include "reader/finding.hpp"

namespace edgediff {
namespace {

constexpr const char* kIds = "input_ids.";

class InputReader {
 public:
  InputReader(const Manifest& manifest, const Program& program, const std::filesystem::path& bundle, Tensors given)
      : manifest_(manifest), program_(program), bundle_(bundle), given_(std::move(given)) {}

  Inputs read() {
    check_names();
    Inputs inputs;
    Shape latent = program_.latent;
    latent.insert(latent.begin(), 1);
    inputs.latent = take("latent", latent);
    inputs.noise = take("noise", latent);
    read_picture(inputs);
    read_mask(inputs);
    for (const std::string& name : used_encoders(manifest_, program_)) inputs.texts[name] = read_texts(name);
    if (const auto label = take("class_label", {1})) {
      check_class(label->values[0]);
      inputs.class_label = label->values[0];
    }
    return inputs;
  }

 private:
  void check_names() const {
    std::set<std::string> known = {"latent", "noise", "picture", "mask"};
    for (const auto& name : used_encoders(manifest_, program_)) known.insert(kIds + name);
    if (label() != nullptr) known.insert("class_label");
    for (const auto& [name, tensor] : given_) {
      if (known.count(name) != 0) continue;
      std::string allowed;
      for (const std::string& one : known) allowed += (allowed.empty() ? "" : ", ") + one;
      throw BadInput("unknown tensor '" + name + "' (allowed: " + allowed + ")");
    }
  }

  std::optional<Tensor> take(const std::string& name, const Shape& shape) const {
    const auto found = given_.find(name);
    if (found == given_.end()) return std::nullopt;
    if (found->second.shape == shape) return found->second;
    throw Refused(name,
                  "'" + name + "' has shape " + text(found->second.shape) + ", this program needs " + text(shape));
  }

  /// Whether the caller gives what the program takes, and no more.
  bool takes(Takes what, const std::string& name) const {
    const bool taken = program_.takes_one(what);
    if (taken == (given_.count(name) != 0)) return taken;
    throw Refused(name,
                  taken ? "this program needs a " + name + "; give it with --inputs" : "this program takes no " + name);
  }

  void read_picture(Inputs& inputs) const {
    if (!takes(Takes::picture, "picture")) return;
    const Shape& size = manifest_.picture->size;
    const Tensor given = bytes(*take("picture", {size[0], size[1], 3}), "picture");
    Tensor picture(Shape{3, size[0], size[1]});
    const std::size_t pixels = picture.values.size() / 3;
    for (std::size_t index = 0; index < given.values.size(); ++index) {
      picture.values[index % 3 * pixels + index / 3] = given.values[index] / 127.5F - 1.0F;
    }
    inputs.picture = std::move(picture);
  }

  void read_mask(Inputs& inputs) const {
    if (!takes(Takes::mask, "mask")) return;
    Tensor mask = bytes(*take("mask", manifest_.picture->size), "mask");
    for (float& value : mask.values) value = value >= 128.0F ? 1.0F : 0.0F;
    if (std::find(mask.values.begin(), mask.values.end(), 1.0F) == mask.values.end()) {
      throw Refused("mask", "is black all over, so nothing would be painted; 128 and above means paint here");
    }
    inputs.mask = std::move(mask);
  }

  static Tensor bytes(Tensor tensor, const std::string& name) {
    for (const float value : tensor.values) {
      if (value < 0 || value > 255 || value != std::floor(value)) throw Refused(name, "must hold bytes, 0 to 255");
    }
    return tensor;
  }

  std::pair<TextIds, TextIds> read_texts(const std::string& name) const {
    const Encoder& encoder = *manifest_.encoders.find(name);
    const Tokenizer& tokenizer = *manifest_.tokenizers.find(encoder.tokenizer);
    const SpecialIds special = read_tokenizer(bundle_, tokenizer);
    const auto length = static_cast<std::int32_t>(tokenizer.length);
    const auto found = given_.find(kIds + name);
    const Tensor ids = found == given_.end() ? golden_ids(encoder) : found->second;
    const bool two = ids.shape.size() == 2 && ids.shape[0] == 2;
    if (ids.shape != Shape{two ? 2 : 1, length}) {
      throw Refused("prompt", "'" + std::string(kIds) + name + "' has shape " + text(ids.shape) +
                                  ", this program needs " + text({1, length}) +
                                  " or [2, ...]: the negative prompt, the prompt");
    }
    if (two && !program_.takes_one(Takes::negative_prompt)) {
      throw Refused("negative_prompt", "this program takes no negative prompt; give ids of one text");
    }
    TextIds prompt = with_mask(ids.part(0, two ? 1 : 0), special);
    if (two) return {with_mask(ids.part(0, 0), special), std::move(prompt)};
    return {empty_text(length, special), std::move(prompt)};
  }

  Tensor golden_ids(const Encoder& encoder) const {
    const std::filesystem::path file = bundle_ / "golden" / (encoder.graph + ".safetensors");
    const Tensors golden = read_safetensors(file);
    const auto found = golden.find("0.in." + encoder.ids);
    if (found == golden.end()) throw BadInput(file.string() + ": has no '0.in." + encoder.ids + "'; give --inputs");
    return found->second;
  }

  static TextIds empty_text(std::int32_t length, const SpecialIds& special) {
    Tensor ids(Shape{1, length});
    std::fill(ids.values.begin(), ids.values.end(), static_cast<float>(special.pad));
    ids.values[0] = static_cast<float>(special.begin);
    ids.values[1] = static_cast<float>(special.end);
    TextIds text = with_mask(std::move(ids), special);
    text.is_empty = true;
    return text;
  }

  static TextIds with_mask(Tensor ids, const SpecialIds& special) {
    const auto end = std::find(ids.values.begin() + 1, ids.values.end(), static_cast<float>(special.end));
    if (end == ids.values.end()) throw Refused("prompt", "the ids have no end token, " + std::to_string(special.end));
    Tensor mask(ids.shape);
    std::fill_n(mask.values.begin(), end - ids.values.begin() + 1, 1.0F);
    return {std::move(ids), std::move(mask)};
  }

  /// The condition that the prompt's class goes to.
  const Condition* label() const {
    for (const std::string& graph : program_.graphs()) {
      for (const TensorSpec* spec : find_graph(manifest_, graph).free_inputs()) {
        const Condition* condition = manifest_.conditions.find(spec->name);
        if (condition->from == From::class_label) return condition;
      }
    }
    return nullptr;
  }

  void check_class(float given) const {
    const std::int64_t count = label()->count;
    if (given >= 0 && given < static_cast<float>(count) && given == std::floor(given)) return;
    throw Refused("prompt", "'class_label' must be a whole number from 0 to " + std::to_string(count - 1));
  }

  const Manifest& manifest_;
  const Program& program_;
  const std::filesystem::path& bundle_;
  const Tensors given_;
};

void check_guidance(const Program& program, double asked) {
  const auto& own = program.guidance ? program.guidance : program.embedded_guidance;
  if (own && own->low <= asked && asked <= own->high) return;
  throw Refused("guidance", own ? "--guidance must be from " + std::to_string(own->low) + " to " +
                                      std::to_string(own->high) + " for this program"
                                : "this program has no guidance");
}

}  // namespace

std::vector<std::string> used_encoders(const Manifest& manifest, const Program& program) {
  std::vector<std::string> found;
  const auto use = [&found](const std::string& name) {
    if (std::find(found.begin(), found.end(), name) == found.end()) found.push_back(name);
  };
  for (const std::string& graph : program.graphs()) {
    for (const TensorSpec* spec : find_graph(manifest, graph).free_inputs()) {
      const Condition* condition = manifest.conditions.find(spec->name);
      for (const TextOutput& output : condition->outputs) use(output.encoder);
      if (condition->from == From::text_mask) use(condition->encoder);
    }
  }
  return found;
}

Inputs read_inputs(const Manifest& manifest, const Program& program, const std::filesystem::path& bundle,
                   const std::optional<std::filesystem::path>& file, const std::optional<double>& guidance) {
  if (guidance) check_guidance(program, *guidance);
  Inputs inputs = InputReader(manifest, program, bundle, file ? read_safetensors(*file) : Tensors{}).read();
  inputs.guidance = guidance;
  return inputs;
}

}  // namespace edgediff
