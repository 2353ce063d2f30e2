// A CUDA device for a torch without CUDA, in the host's memory: tensors say cuda:0, operators run on the CPU
// at once.
//
// What it shows: tensors of two devices in one operator, what makes the host wait (an error in
// torch.cuda.set_sync_debug_mode("error") and while a graph is captured), what a graph does when it is
// replayed, and all Python that is there for a GPU. What it does not: anything about streams that are out of
// step, and no speed. Written for the torch of constraints.txt: it stands in for parts of torch that are not
// its interface.
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "operators.hpp"

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}
namespace host_device {
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
const bool registered = (c10::SetAllocator(c10::DeviceType::CUDA, &DeviceMemory::get()), true);
}  // namespace host_device

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&host_device::any_operator>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &host_device::empty);
  m.impl("empty_strided", &host_device::empty_strided);
  m.impl("resize_", &host_device::resize_);
  m.impl("copy_", &host_device::copy_);
  m.impl("set_.source_Storage_storage_offset", &host_device::set_storage);
  m.impl("set_.source_Storage", &host_device::set_whole_storage);
  m.impl("set_.source_Tensor", &host_device::set_tensor);
  m.impl("set_", &host_device::set_nothing);
  // Views share the storage itself.
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
}

TORCH_LIBRARY(host_device, m) {
  m.def("on_host(Tensor x) -> Tensor");
  m.def("waits() -> int", [] { return host_device::Waits::get().count.load(); });
  m.def("forbid_waits(bool forbidden) -> ()",
        [](bool forbidden) { host_device::Waits::get().forbidden = forbidden; });
  m.def("listen(bool begin) -> ()", [](bool begin) { host_device::Launches::get().listen(begin); });
  m.def("launched(str name) -> ()", [](std::string name) { host_device::Launches::get().note(name); });
  m.def("launches() -> str[]", [] { return host_device::Launches::get().noted(); });
  // Of the generator that serves where none is given.
  m.def("manual_seed(int seed) -> ()", [](int64_t seed) {
    host_device::default_generator().unsafeGetGeneratorImpl()->set_current_seed(static_cast<uint64_t>(seed));
  });
  m.def("get_rng_state() -> Tensor", [] { return host_device::default_generator().get_state(); });
  m.def("set_rng_state(Tensor state) -> ()", [](const at::Tensor& state) {
    at::Generator generator = host_device::default_generator();
    generator.set_state(state);
  });
  m.def("waits_forbidden() -> bool", [] { return host_device::Waits::get().forbidden.load(); });
  m.def("capturing() -> bool", [] { return host_device::Graphs::capturing(); });
  m.def("capture_begin() -> ()", [] { host_device::Graphs::get().begin(); });
  m.def("capture_end() -> int", [] { return host_device::Graphs::get().end(); });
  m.def("recorded() -> int", [] { return static_cast<int64_t>(host_device::Graphs::get().recorded.size()); });
  m.def("replay(int graph, int first, int end) -> ()", [](int64_t graph, int64_t first, int64_t end) {
    host_device::Graphs::get().replay(graph, first, end);
  });
}

TORCH_LIBRARY_IMPL(host_device, CUDA, m) {
  m.impl("on_host", [](const at::Tensor& x) { return host_device::on_host(x); });
}
