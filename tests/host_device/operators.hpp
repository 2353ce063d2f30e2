// torch's operators on the device: those of the CPU, over the same bytes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TensorFactories.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "graphs.hpp"
#include "guard.hpp"
#include "waits.hpp"

namespace host_device {

using at::Tensor;
using Names = std::unordered_set<std::string>;

// A tensor of the CPU over the same memory.
inline Tensor on_host(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cuda()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  Tensor result;
  if (tensor.numel() == 0) {
    result = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  } else {
    auto* memory = const_cast<void*>(tensor.const_data_ptr());
    result = at::for_blob(memory, tensor.sizes()).strides(tensor.strides()).options(options).make_tensor();
  }
  if (tensor.is_conj()) result._set_conj(true);
  if (tensor.is_neg()) result._set_neg(true);
  return result;
}

// A tensor of the device over what an operator of the CPU returned.
inline Tensor on_device(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().is_cuda()) return tensor;
  void* memory = tensor.storage().mutable_data();
  if (memory != nullptr) Blocks::get().add(memory, tensor.storage().nbytes());
  const auto give_back = [](void* kept) {
    auto* tensor = static_cast<Tensor*>(kept);
    void* memory = tensor->storage().mutable_data();
    if (memory == nullptr || Blocks::get().remove(memory)) delete tensor;
  };
  c10::DataPtr data(memory, new Tensor(tensor), give_back, kDevice);
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(data),
                       &DeviceMemory::get(), true);
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                      tensor.storage_offset());
  return result;
}

// One call of an operator: its arguments brought to the host, its results to the device.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), first_(stack->size() - schema_.arguments().size()) {}

  void run() {
    const std::string& name = schema_.operator_name().name;
    if (reads_values().count(name)) Waits::get().note(name);
    Launches::get().note(name);
    for (size_t i = 0; i < schema_.arguments().size(); ++i) bring(i);
    given_.assign(stack_->begin() + first_, stack_->end());
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    take_outputs();
    if (Graphs::capturing()) record();
    wrap_results();
  }

 private:
  static const Names& reads_values() {
    static const Names& names = *new Names{
        "aten::_local_scalar_dense", "aten::bincount",         "aten::equal",    "aten::is_nonzero",
        "aten::masked_select",       "aten::nonzero",          "aten::_unique2", "aten::unique_consecutive",
        "aten::unique_dim",          "aten::repeat_interleave"};
    return names;
  }
  // A scalar of the host's may stand beside tensors of the device, as with CUDA.
  Tensor host_of(const Tensor& tensor) const {
    TORCH_CHECK(
        !tensor.defined() || !tensor.device().is_cpu() || tensor.dim() == 0,
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
        schema_.operator_name().name, ")");
    return on_host(tensor);
  }

  // An index may be the host's. A mask is looked at for its size, unless one number goes where it says.
  Tensor index_of(const Tensor& index) const {
    if (!index.defined()) return index;
    const bool mask = index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
    const bool filled = schema_.arguments().size() > 2 && (*stack_)[first_ + 2].isTensor() &&
                        (*stack_)[first_ + 2].toTensor().numel() == 1;
    if (index.device().is_cuda() && mask && !filled) Waits::get().note("index by a mask");
    return on_host(index);
  }

  void bring(size_t i) {
    c10::IValue& value = (*stack_)[first_ + i];
    if (value.isTensor()) {
      bring_tensor(i, value);
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (Tensor& tensor : list) tensor = host_of(tensor);
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (std::optional<Tensor> tensor : value.toOptionalTensorList())
        list.push_back(tensor.has_value() ? std::optional<Tensor>(index_of(*tensor)) : std::nullopt);
      value = list;
    } else if (is_generator(i)) {
      const at::Generator generator = value.isNone() ? default_generator() : value.toGenerator();
      if (generator.device().is_cuda())
        value = static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = c10::Device(c10::DeviceType::CPU);
    }
  }

  bool is_generator(size_t i) const {
    auto type = schema_.arguments()[i].type();
    if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    return type->kind() == c10::TypeKind::GeneratorType;
  }

  void bring_tensor(size_t i, c10::IValue& value) {
    const Tensor tensor = value.toTensor();
    const auto* alias = schema_.arguments()[i].alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    value = host_of(tensor);
    if (written) written_.emplace_back(alias, tensor);
    if (written && schema_.arguments()[i].kwarg_only() && tensor.defined() && tensor.numel() == 0) {
      // An output that the operator is to give its size.
      const Tensor output = at::empty({0}, at::TensorOptions().dtype(tensor.dtype()));
      outputs_.emplace_back(tensor, output);
      value = output;
    }
  }

  void take_outputs() {
    for (auto& [tensor, output] : outputs_) {
      tensor.resize_(output.sizes());
      on_host(tensor).copy_(output);
    }
  }

  void record() {
    const std::vector<c10::IValue> results(stack_->end() - schema_.returns().size(), stack_->end());
    std::vector<std::pair<Tensor, Tensor>> copies;
    for (auto& [tensor, output] : outputs_) copies.emplace_back(on_host(tensor), output);
    Graphs::get().recorded.push_back(
        [op = op_, given = given_, results, copies, returns = schema_.returns()] {
          torch::jit::Stack stack(given);
          op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
          for (const auto& [tensor, output] : copies) tensor.copy_(output);
          const size_t first = stack.size() - results.size();
          for (size_t r = 0; r < results.size(); ++r)
            if (returns[r].alias_info() == nullptr) copy_result(results[r], stack[first + r]);
        });
  }

  static void copy_result(const c10::IValue& to, const c10::IValue& from) {
    if (to.isTensor() && to.toTensor().defined()) to.toTensor().copy_(from.toTensor());
    if (to.isTensorList()) {
      auto ours = to.toTensorVector(), theirs = from.toTensorVector();
      for (size_t i = 0; i < ours.size(); ++i) ours[i].copy_(theirs[i]);
    }
  }

  void wrap_results() {
    const size_t first = stack_->size() - schema_.returns().size();
    for (size_t r = 0; r < schema_.returns().size(); ++r) {
      c10::IValue& value = (*stack_)[first + r];
      const auto* alias = schema_.returns()[r].alias_info();
      if (value.isTensor()) {
        value = alias != nullptr && alias->isWrite() ? argument_of(*alias) : on_device(value.toTensor());
      } else if (value.isTensorList()) {
        auto list = value.toTensorVector();
        for (Tensor& tensor : list) tensor = on_device(tensor);
        value = list;
      }
    }
  }

  Tensor argument_of(const c10::AliasInfo& alias) const {
    for (const auto& [given, tensor] : written_)
      if (*given == alias) return tensor;
    TORCH_CHECK(false, "no argument of ", schema_.operator_name().name, " is what it returns");
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;
  std::vector<c10::IValue> given_;
  std::vector<std::pair<const c10::AliasInfo*, Tensor>> written_;
  std::vector<std::pair<Tensor, Tensor>> outputs_;
};

inline void any_operator(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call(op, stack).run();
}

inline Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  if (self.device() != source.device()) {
    if (!non_blocking) Waits::get().note("copy");
    const Tensor& of_host = self.device().is_cpu() ? self : source;
    if (non_blocking && of_host.numel() > 0 && !of_host.is_pinned())
      Waits::get().note("copy of pageable memory");
  }
  Launches::get().note("aten::copy_");
  const Tensor to = on_host(self), from = on_host(source);
  to.copy_(from);
  if (Graphs::capturing())
    Graphs::get().recorded.push_back([to, from, keep = std::make_pair(self, source)] { to.copy_(from); });
  return self;
}

inline void poison(const Tensor& tensor) {
  const auto& context = at::globalContext();
  if (!context.deterministicAlgorithms() || !context.deterministicFillUninitializedMemory()) return;
  Tensor host = on_host(tensor);
  at::native::fill_empty_deterministic_(host);
}

inline Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<c10::Device>, std::optional<bool> pin,
                    std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const Tensor result =
      at::detail::empty_generic(size, &DeviceMemory::get(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                c10::dtype_or_default(dtype), format);
  poison(result);
  return result;
}

inline Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                            std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                            std::optional<c10::Device>, std::optional<bool>) {
  const Tensor result = at::detail::empty_strided_generic(size, stride, &DeviceMemory::get(),
                                                          c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                          c10::dtype_or_default(dtype));
  poison(result);
  return result;
}

inline const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (self.sizes() == size) return self;
  const size_t bytes = (self.storage_offset() + c10::multiply_integers(size)) * self.itemsize();
  const c10::Storage& storage = self.storage();
  if (bytes > storage.nbytes()) {
    auto data = DeviceMemory::get().allocate(bytes);
    if (storage.nbytes() != 0) std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

inline Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                           c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.empty() && !size.empty())
    impl->set_sizes_contiguous(size);
  else
    impl->set_sizes_and_strides(size, stride);
  return self;
}
inline Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {length}, {1});
}
inline Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
inline Tensor& set_nothing(Tensor& self) {
  auto& memory = DeviceMemory::get();
  c10::Storage nothing(c10::Storage::use_byte_size_t(), 0, memory.allocate(0), &memory, true);
  return set_storage(self, std::move(nothing), 0, {0}, {1});
}

}  // namespace host_device
