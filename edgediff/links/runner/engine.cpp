#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>

#include "reader/errors.hpp"
#include "reader/finding.hpp"

// The wheel has this class in its library but not its header. Only these members are used, never its layout.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t new_thread_count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace edgediff {
namespace {

using executorch::aten::Half;
using executorch::aten::ScalarType;
using executorch::etdump::ETDumpGen;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::MethodMeta;
using executorch::runtime::TensorInfo;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::float16: return ScalarType::Half;
    case DType::int64: return ScalarType::Long;
    case DType::int32: return ScalarType::Int;
    case DType::float32: break;
  }
  return ScalarType::Float;
}

template <typename Stored>
TensorPtr packed_as(const Tensor& tensor, DType dtype) {
  std::vector<std::uint8_t> bytes(tensor.values.size() * sizeof(Stored));
  for (std::size_t index = 0; index < tensor.values.size(); ++index) {
    const auto value = static_cast<Stored>(tensor.values[index]);
    std::memcpy(bytes.data() + index * sizeof(Stored), &value, sizeof value);
  }
  return executorch::extension::make_tensor_ptr(tensor.shape, std::move(bytes), {}, {}, scalar_type(dtype));
}

/// The tensor as the method wants it. float32 is lent, not copied: `tensor` must live until the method has run.
TensorPtr packed(const Tensor& tensor, DType dtype) {
  switch (dtype) {
    case DType::float16: return packed_as<Half>(tensor, dtype);
    case DType::int64: return packed_as<std::int64_t>(tensor, dtype);
    case DType::int32: return packed_as<std::int32_t>(tensor, dtype);
    case DType::float32: break;
  }
  auto* values = const_cast<float*>(tensor.values.data());  // the method only reads its inputs
  return executorch::extension::from_blob(values, tensor.shape, ScalarType::Float);
}

template <typename Stored>
void widen(const executorch::aten::Tensor& from, Tensor& into) {
  const auto* values = from.const_data_ptr<Stored>();
  std::transform(values, values + into.values.size(), into.values.begin(),
                 [](Stored value) { return static_cast<float>(value); });
}

/// A copy: the method's next run overwrites what it returned.
Tensor unpacked(const executorch::aten::Tensor& from) {
  Tensor tensor(Shape(from.sizes().begin(), from.sizes().end()));
  switch (from.scalar_type()) {
    case ScalarType::Float: widen<float>(from, tensor); break;
    case ScalarType::Half: widen<Half>(from, tensor); break;
    case ScalarType::Long: widen<std::int64_t>(from, tensor); break;
    case ScalarType::Int: widen<std::int32_t>(from, tensor); break;
    default: throw Failed("put out a dtype that no graph of a bundle has");
  }
  return tensor;
}

bool fits(const executorch::runtime::Result<TensorInfo>& info, const TensorSpec& spec, std::int32_t batch) {
  const Shape wanted = spec.sized(batch);
  return info.ok() && info->scalar_type() == scalar_type(spec.dtype) &&
         std::equal(wanted.begin(), wanted.end(), info->sizes().begin(), info->sizes().end());
}

bool fits(const MethodMeta& meta, const Graph& graph, std::int32_t batch) {
  if (meta.num_inputs() != graph.inputs.size() || meta.num_outputs() != graph.outputs.size()) return false;
  for (std::size_t index = 0; index < graph.inputs.size(); ++index) {
    if (!fits(meta.input_tensor_meta(index), graph.inputs[index], batch)) return false;
  }
  for (std::size_t index = 0; index < graph.outputs.size(); ++index) {
    if (!fits(meta.output_tensor_meta(index), graph.outputs[index], batch)) return false;
  }
  return true;
}

/// Methods that share weights pack them for XNNPACK once: by itself it packs all of them again for each. The wheel has
/// no header with the words.
void share_packed_weights() {
  executorch::runtime::BackendOptions<1> options;
  if (options.set_option("weight_cache_enabled", true) != Error::Ok ||
      executorch::runtime::set_option("XnnpackBackend", options.view()) != Error::Ok) {
    throw Failed("XNNPACK does not take the option weight_cache_enabled: this runner has another ExecuTorch than ours");
  }
}

std::int64_t planned(const MethodMeta& meta) {
  std::int64_t bytes = 0;
  for (std::size_t index = 0; index < meta.num_memory_planned_buffers(); ++index) {
    const auto size = meta.memory_planned_buffer_size(index);
    if (size.ok()) bytes += *size;
  }
  return bytes;
}

}  // namespace

Engine::Engine(const Manifest& manifest, std::filesystem::path folder, bool traced)
    : manifest_(manifest), folder_(std::move(folder)), traced_(traced) {
  share_packed_weights();
}

Engine::Module& Engine::open(const Artifact& artifact) {
  std::unique_ptr<Module>& module = modules_[artifact.file];
  if (module != nullptr) return *module;
  std::vector<std::string> data;
  for (const std::string& path : artifact.data) data.push_back((folder_ / path).string());
  const std::string file = (folder_ / artifact.file).string();
  auto opened = std::make_unique<Module>(file, data, Module::LoadMode::Mmap);
  const Error error = opened->load(executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) {
    throw Failed(file + ": ExecuTorch cannot load it (" + to_string(error) +
                 "); push the bundle again, or build it with "
                 "the version of executorch that this runner has");
  }
  module = std::move(opened);
  return *module;
}

double Engine::load(const std::string& name, std::int32_t batch) {
  if (methods_.count({name, batch}) != 0) return 0;
  const auto start = Clock::now();
  const Graph& graph = find_graph(manifest_, name);
  const Artifact* artifact = graph.artifacts.find(kBackend);
  if (artifact == nullptr) {
    throw Refused("backend", "graph '" + name + "' was not built for " + kBackend +
                                 "; build the bundle with --backend executorch");
  }
  if (!artifact->chunks.empty() || artifact->states.size() != 0) {
    throw Refused("backend", "graph '" + name + "' is in chunks or keeps states, which " + kBackend + " does not do");
  }
  Module& module = open(*artifact);
  const std::string function = artifact->function.value_or("forward");
  // A method has one batch; the other, where there is one, bears it in its name.
  for (const std::string& method : {function, function + "_batch" + std::to_string(batch)}) {
    const auto meta = module.method_meta(method);
    if (!meta.ok() || !fits(*meta, graph, batch)) continue;
    if (traced_) tracers_.push_back(std::make_unique<ETDumpGen>());
    ETDumpGen* tracer = traced_ ? tracers_.back().get() : nullptr;
    const Error error = module.load_method(method, nullptr, tracer);
    if (error != Error::Ok) {
      throw Failed(artifact->file + ": method '" + method + "' cannot be loaded (" + to_string(error) +
                   "); an operator or a delegate that this runner lacks does that");
    }
    planned_bytes_ += planned(*meta);
    methods_.emplace(std::make_pair(name, batch), Method{&module, method, tracer});
    return milliseconds_since(start);
  }
  throw BadInput(artifact->file + ": has no method '" + function + "' with the inputs and outputs of graph '" + name +
                 "' at batch " + std::to_string(batch) + "; build the bundle again");
}

const Engine::Method& Engine::method(const std::string& graph, std::int32_t batch) const {
  const auto found = methods_.find({graph, batch});
  if (found == methods_.end()) throw Failed("graph '" + graph + "' was not loaded at batch " + std::to_string(batch));
  return found->second;
}

std::vector<Tensor> Engine::run(const std::string& name, std::int32_t batch, const std::vector<const Tensor*>& inputs) {
  const Method& called = method(name, batch);
  const Graph& graph = find_graph(manifest_, name);
  const auto start = Clock::now();
  std::vector<TensorPtr> owners;
  std::vector<EValue> values;
  for (std::size_t index = 0; index < inputs.size(); ++index) {
    const TensorSpec& spec = graph.inputs.at(index);
    if (inputs[index]->shape != spec.sized(batch)) {
      throw Failed("graph '" + name + "' takes " + text(spec.sized(batch)) + " as '" + spec.name + "', not " +
                   text(inputs[index]->shape));
    }
    owners.push_back(packed(*inputs[index], spec.dtype));
    values.emplace_back(owners.back());
  }
  const auto result = called.module->execute(called.name, values);
  if (!result.ok()) throw Failed("graph '" + name + "' failed in ExecuTorch: " + to_string(result.error()));
  std::vector<Tensor> outputs;
  for (const EValue& value : *result) outputs.push_back(unpacked(value.toTensor()));
  if (heard_) heard_(label(name, batch), milliseconds_since(start));
  return outputs;
}

std::string Engine::label(const std::string& graph, std::int32_t batch) const {
  const auto sizes = std::count_if(methods_.begin(), methods_.end(),
                                   [&graph](const auto& entry) { return entry.first.first == graph; });
  return sizes > 1 ? graph + "@" + std::to_string(batch) : graph;
}

void Engine::write_traces(const std::filesystem::path& out) {
  std::error_code refused;  // then no file can be written either
  std::filesystem::create_directories(out, refused);
  for (const auto& [called, method] : methods_) {
    const auto data = method.tracer->get_etdump_data();
    const std::unique_ptr<void, decltype(&std::free)> owner(data.buf, &std::free);
    const std::filesystem::path file = out / (label(called.first, called.second) + ".etdp");
    std::ofstream stream(file, std::ios::binary);
    stream.write(static_cast<const char*>(data.buf), static_cast<std::streamsize>(data.size));
    if (data.buf == nullptr || !stream.flush()) throw BadInput(file.string() + ": the trace cannot be written");
  }
}

std::size_t set_threads(std::size_t wanted) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr) throw Failed("ExecuTorch has no pool of threads: it cannot tell the cores of this system");
  if (wanted != 0 && !pool->_unsafe_reset_threadpool(static_cast<std::uint32_t>(wanted))) {
    throw Failed("ExecuTorch cannot make " + std::to_string(wanted) + " threads");
  }
  return pool->get_thread_count();
}

}  // namespace edgediff
