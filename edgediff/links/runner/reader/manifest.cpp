#include "manifest.hpp"

#include <algorithm>
#include <set>

#include "errors.hpp"
#include "rules.hpp"
#include "tables.hpp"

namespace edgediff {
namespace {

bool is_decimal(std::string_view text) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
  return digits && (text.size() == 1 || text[0] != '0');
}

/// Throws Refused `version` for anything but `2.<minor>`.
void check_version(const json::Value* given) {
  const std::string* text = given == nullptr ? nullptr : given->text();
  if (text == nullptr)
    throw Refused("version", "schema_version must be a text like '2.0', which every manifest states");
  const std::size_t point = text->find('.');
  const std::string_view all(*text), major = all.substr(0, point);
  const bool sound = point != std::string::npos && is_decimal(major) && is_decimal(all.substr(point + 1));
  if (sound && major == "2") return;
  const std::string shown = "schema_version '" + text->substr(0, 40) + "'";
  if (sound && major == "1") {
    throw Refused("version", shown + " is the first format, which is no longer read: build the bundle again");
  }
  throw Refused("version", shown + " cannot be read: this runner reads 2.x; build the runner again");
}

std::vector<const TensorSpec*> free_of(const std::vector<TensorSpec>& tensors, const Map<std::string>& carries) {
  std::set<std::string> carried;
  for (const auto& [carry, tensor] : carries) carried.insert(tensor);
  std::vector<const TensorSpec*> found;
  for (const TensorSpec& tensor : tensors) {
    if (carried.count(tensor.name) == 0) found.push_back(&tensor);
  }
  return found;
}

}  // namespace

bool is_float(DType dtype) { return dtype == DType::float32 || dtype == DType::float16; }

bool is_integer(DType dtype) { return !is_float(dtype); }

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

std::vector<const TensorSpec*> Graph::free_inputs() const { return free_of(inputs, carries_in); }

std::vector<const TensorSpec*> Graph::free_outputs() const { return free_of(outputs, carries_out); }

bool Program::takes_one(Takes what) const { return std::find(takes.begin(), takes.end(), what) != takes.end(); }

bool Program::is_guided() const {
  return std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.guidance.has_value(); });
}

bool Program::blends() const {
  return std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.blend.has_value(); });
}

std::vector<std::string> Program::graphs() const {
  std::vector<std::string> found;
  std::set<std::string> seen;
  for (const Row& row : rows) {
    if (row.graph && seen.insert(*row.graph).second) found.push_back(*row.graph);
  }
  return found;
}

const TensorSpec* find_tensor(const std::vector<TensorSpec>& tensors, const std::string& name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&name](const auto& one) { return one.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

Manifest parse_manifest(std::string_view text) {
  const json::Value value = json::parse(text);
  const json::Object* object = value.object();
  if (object == nullptr) throw Refused("value", "a manifest is an object, not another value");
  check_version(json::find(*object, "schema_version"));
  return tables::read_manifest(value);
}

Manifest read_manifest(std::string_view text) {
  Manifest manifest = parse_manifest(text);
  check_rules(manifest);
  return manifest;
}

}  // namespace edgediff
