#include "tensor.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <sstream>

#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <nlohmann/json.hpp>

#include "reader/errors.hpp"

namespace edgediff {
namespace {

constexpr std::uint64_t kLargestHeader = 100'000'000;
constexpr std::int64_t kLargestExact = 1 << 24;  // beyond it float32 skips whole numbers

using Half = executorch::aten::Half;

template <typename Stored>
float widened(Stored value) {
  return static_cast<float>(value);
}

template <>
float widened(std::int64_t value) {
  if (value > kLargestExact || value < -kLargestExact) {
    throw BadInput("the whole number " + std::to_string(value) + " is beyond 2^24, which float32 cannot hold");
  }
  return static_cast<float>(value);
}

template <typename Stored>
void unpack(const char* bytes, std::size_t size, Tensor& into) {
  if (size != into.values.size() * sizeof(Stored)) throw BadInput("has a size that does not fit its shape");
  for (std::size_t index = 0; index < into.values.size(); ++index) {
    Stored value;
    std::memcpy(&value, bytes + index * sizeof(Stored), sizeof(Stored));
    into.values[index] = widened(value);
  }
}

Tensor read_one(const nlohmann::json& entry, const std::string& data) {
  Tensor tensor(entry.at("shape").get<Shape>());
  const auto begin = entry.at("data_offsets").at(0).get<std::size_t>();
  const auto end = entry.at("data_offsets").at(1).get<std::size_t>();
  if (begin > end || end > data.size()) throw BadInput("lies outside the file");
  const auto kind = entry.at("dtype").get<std::string>();
  const char* bytes = data.data() + begin;
  if (kind == "F32") {
    unpack<float>(bytes, end - begin, tensor);
  } else if (kind == "F16") {
    unpack<Half>(bytes, end - begin, tensor);
  } else if (kind == "I64") {
    unpack<std::int64_t>(bytes, end - begin, tensor);
  } else if (kind == "I32") {
    unpack<std::int32_t>(bytes, end - begin, tensor);
  } else {
    throw BadInput("has dtype " + kind + "; F32, F16, I64 and I32 can be read");
  }
  return tensor;
}

}  // namespace

std::size_t count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

std::string text(const Shape& shape) {
  std::ostringstream out;
  for (std::size_t index = 0; index < shape.size(); ++index) out << (index ? ", " : "[") << shape[index];
  out << (shape.empty() ? "[]" : "]");
  return out.str();
}

Tensor Tensor::part(std::size_t axis, std::int32_t index) const {
  Shape sizes = shape;
  sizes.at(axis) = 1;
  Tensor taken(std::move(sizes));
  const std::size_t inner = count(Shape(shape.begin() + static_cast<std::ptrdiff_t>(axis) + 1, shape.end()));
  const std::size_t stride = inner * static_cast<std::size_t>(shape[axis]);
  for (std::size_t outer = 0; outer < taken.values.size() / inner; ++outer) {
    const auto from =
        values.begin() + static_cast<std::ptrdiff_t>(outer * stride + inner * static_cast<std::size_t>(index));
    std::copy_n(from, inner, taken.values.begin() + static_cast<std::ptrdiff_t>(outer * inner));
  }
  return taken;
}

Tensor stacked(const Tensor& first, const Tensor& second) {
  Tensor both;
  both.shape = first.shape;
  both.shape.at(0) += second.shape.at(0);
  both.values = first.values;
  both.values.insert(both.values.end(), second.values.begin(), second.values.end());
  return both;
}

Tensor joined(const std::vector<Tensor>& parts) {
  Tensor all;
  all.shape = parts.at(0).shape;
  all.shape.back() = 0;
  for (const Tensor& part : parts) all.shape.back() += part.shape.back();
  const std::size_t rows = count(Shape(all.shape.begin(), all.shape.end() - 1));
  for (std::size_t row = 0; row < rows; ++row) {
    for (const Tensor& part : parts) {
      const auto width = static_cast<std::ptrdiff_t>(part.shape.back());
      const auto from = part.values.begin() + static_cast<std::ptrdiff_t>(row) * width;
      all.values.insert(all.values.end(), from, from + width);
    }
  }
  return all;
}

Tensor scaled(const Tensor& tensor, double factor) {
  Tensor result = tensor;
  for (float& value : result.values) value *= static_cast<float>(factor);
  return result;
}

void add(Tensor& total, double factor, const Tensor& tensor) {
  if (factor == 0) return;
  if (total.values.empty()) {
    total = scaled(tensor, factor);
    return;
  }
  for (std::size_t index = 0; index < total.values.size(); ++index) {
    total.values[index] += static_cast<float>(factor) * tensor.values[index];
  }
}

Tensors read_safetensors(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::uint64_t length = 0;
  if (!stream || !stream.read(reinterpret_cast<char*>(&length), sizeof length) || length > kLargestHeader) {
    throw BadInput(file.string() + ": cannot be read as .safetensors; copy it again");
  }
  std::string header(length, '\0');
  if (!stream.read(header.data(), static_cast<std::streamsize>(length))) {
    throw BadInput(file.string() + ": ends inside its header; copy it again");
  }
  const std::string data{std::istreambuf_iterator<char>(stream), {}};
  Tensors found;
  std::string name;
  try {
    const auto entries = nlohmann::json::parse(header);
    for (const auto& [key, entry] : entries.items()) {
      name = key;
      if (key != "__metadata__") found.emplace(key, read_one(entry, data));
    }
  } catch (const std::exception& error) {
    throw BadInput(file.string() + ": tensor '" + name + "' " + error.what());
  }
  return found;
}

void write_safetensors(const std::filesystem::path& file, const Tensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::size_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t end = offset + tensor.values.size() * sizeof(float);
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string head = header.dump();
  head.resize((head.size() + 7) / 8 * 8, ' ');  // the format wants its data aligned
  const std::uint64_t length = head.size();
  std::ofstream stream(file, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(&length), sizeof length) << head;
  for (const auto& [name, tensor] : tensors) {
    stream.write(reinterpret_cast<const char*>(tensor.values.data()),
                 static_cast<std::streamsize>(tensor.values.size() * sizeof(float)));
  }
  if (!stream.flush()) throw BadInput(file.string() + ": cannot be written; is there room, and does its folder exist?");
}

}  // namespace edgediff
